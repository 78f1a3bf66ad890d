"""The encoder's fingerprint under several layouts of the same ranks, written as JSON by the first.

    frozen_ranks.py OUT.json RECIPE TENSOR[,TENSOR...]
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.training.cache_features import encoder_only
from nvlm_train.training.stages import build_engine


def main() -> None:
    out, recipe, sizes = sys.argv[1:]
    found = {}
    for tensor in map(int, sizes.split(",")):
        overrides = [f"recipe={recipe}", "stage=pretrain", "run.device=cpu", "model.language.kv_heads=4",
                     f"layout.tensor={tensor}"]
        pipelined = ["layout.pipeline=2"] if tensor == 2 else []
        for name, run in (("whole", compose([*overrides, *pipelined])[0]), ("encoder", encoder_only(compose(overrides)[0]))):
            with closing(build_engine(run)) as engine:
                found[f"{name} {tensor}"] = engine.encoder_fingerprint()
                if name == "encoder":
                    _change_one_element(engine)
                    found[f"changed {tensor}"] = engine.encoder_fingerprint()
    with closing(build_engine(compose([*overrides, "train.seed=7"])[0])) as engine:
        found["seed"] = engine.encoder_fingerprint()
    if engine.is_main:
        Path(out).write_text(json.dumps(found))


def _change_one_element(engine) -> None:
    """Of the last head's output projection, which is split over the tensor ranks; heads of 32 channels, 5 of them."""
    weight = engine.stages()[0].vision.layers[2].attention.linear_proj.weight
    first = engine.groups.tensor_rank * weight.shape[1]
    if first <= 150 < first + weight.shape[1]:
        with torch.no_grad():
            weight[3, 150 - first] += 1e-3


if __name__ == "__main__":
    main()
