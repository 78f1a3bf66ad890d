"""Trains one model with its frozen encoder split over two ranks, and whole on both with the tiles shared out, and goes on from the one's
checkpoint under the other. Run on two ranks; writes JSON.

    sharing_ranks.py OUT.json ARCHITECTURE[,ARCHITECTURE...]
"""

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts, load
from nvlm_train.engine.manifest import fingerprint
from nvlm_train.engine.megatron import MegatronEngine
from tests.model.rows import T, make_row

# Five heads, six on two ranks that split them. Rows of three tiles, of two, of none.
SETTINGS = ("stage=sft", f"data.pack_tokens={T}", "run.device=cpu", "train.trainable=[connector,language]",
            "model.cross_attention.gate_init=0.3")
LAYOUTS = {"split": "layout.tensor=2", "shared": "layout.tensor=2 layout.share_tiles=true layout.sequence=true", "whole": "layout.tensor=1"}
OTHER = {"split": "shared", "shared": "split"}
KINDS = (("image", "mixed"), ("text", "image"), ("empty", "text"), ("mixed", "image"))


def run_of(architecture: str, layout: str):
    recipe = "nvlm_d_tiny_6b" if architecture == "nvlm_d" else f"{architecture}_tiny"
    return compose([f"recipe={recipe}", *SETTINGS, *LAYOUTS[layout].split()])[0]


def train(engine: MegatronEngine, architecture: str, steps: range) -> list[list[float]]:
    found = []
    for step in steps:
        rows = [make_row(architecture, 2 * step + i, kind) for i, kind in enumerate(KINDS[step])]
        report = engine.train_step(StepBatch(step, rows[engine.data_rank::engine.data_size], (), 0), 5e-4)
        found.append([report.loss, report.grad_norm])
    return found


def seen(engine: MegatronEngine, architecture: str) -> list[list[float]]:
    """Of one, two and three tiles: of every tile the mean of its features, by which tiles are told apart, from every rank."""
    row = make_row(architecture, 5)
    parts = [engine.see(replace(row, tiles_nCPP=row.tiles_nCPP[:n])).double() for n in (1, 2, 3)]
    return engine.gather_objects([float(tile.abs().mean()) for part in parts for tile in part])


def one_layout(architecture: str, name: str, folder: Path) -> dict:
    run = run_of(architecture, name)
    with closing(MegatronEngine(run)) as engine:
        found = {"elements": sum(p.numel() for p in engine.stages()[0].vision.parameters()), "fingerprint": engine.encoder_fingerprint(),
                 "seen": seen(engine, architecture), "first": train(engine, architecture, range(2))}
        store = CheckpointStore(folder / f"{architecture}-{name}", keep_last=1)
        store.save(engine, SaveFacts(stage="sft", config={}, fingerprint=fingerprint(run, "none"), cursor=0), 2)
        found["later"] = train(engine, architecture, range(2, 4))
        found["logits"] = engine.logits(make_row(architecture, 9), torch.arange(0, T, 50)).double().sum(-1).tolist()
    if name in OTHER:
        other = replace(run_of(architecture, OTHER[name]), train=replace(run.train, seed=7))
        with closing(MegatronEngine(other)) as engine:
            manifest = load(store.latest(), engine, fingerprint(other, "none"))
            found["contents"] = {key: shape for section in manifest.contents.values() for key, (_, shape) in section.items()}
            found["fingerprint resumed"] = engine.encoder_fingerprint()
            found["resumed"] = train(engine, architecture, range(2, 4))
    return found


def main() -> None:
    out = Path(sys.argv[1])
    found = {a: {name: one_layout(a, name, out.parent) for name in LAYOUTS} for a in sys.argv[2].split(",")}
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
