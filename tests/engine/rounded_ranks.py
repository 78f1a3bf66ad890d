"""Trains a tiny model with moments in fp32 and in bf16, and goes on from the one's checkpoint with the other. Two replicas; writes JSON.

    rounded_ranks.py OUT.json
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts, load
from nvlm_train.engine.manifest import fingerprint
from nvlm_train.engine.megatron import MegatronEngine
from tests.model.rows import T, make_row

STEPS = 200
OTHER = {"fp32": "bf16", "bf16": "fp32"}


def engine_of(state: str, seed: int) -> MegatronEngine:
    return MegatronEngine(compose(["recipe=nvlm_d_tiny", "stage=sft", "run.device=cpu", f"data.pack_tokens={T}", f"train.seed={seed}",
                                   "model.language.layers=2", f"train.optimizer_state={state}"])[0])


def step(engine: MegatronEngine, number: int) -> float:
    """Four rows again and again: there is something to learn by heart."""
    row = make_row("nvlm_d", 2 * (number % 2) + engine.data_rank)
    return engine.train_step(StepBatch(number, [row], (), 0), 5e-4).loss


def moments(engine: MegatronEngine) -> list[torch.Tensor]:
    return [state[name].clone() for part in engine.optimizer.chained_optimizers for state in part.optimizer.state.values()
            for name in ("exp_avg", "exp_avg_sq")]


def trained(state: str, folder: Path) -> dict:
    with closing(engine_of(state, 1)) as engine:
        found = {"losses": [step(engine, number) for number in range(STEPS)]}
        before = moments(engine)
        store = CheckpointStore(folder / state, keep_last=1)
        store.save(engine, SaveFacts(stage="sft", config={}, fingerprint=fingerprint(engine.run, "none"), cursor=0), STEPS)
        found |= {"kept": str(before[0].dtype), "later": [step(engine, STEPS), step(engine, STEPS + 1)]}
    with closing(engine_of(OTHER[state], 7)) as engine:
        manifest = load(store.latest(), engine, fingerprint(engine.run, "none"))
        found["saved"] = {name: manifest.contents["optimizer"][f"optimizer.state.{name}.language.embedding.weight"][0]
                          for name in ("exp_avg", "exp_avg_sq")}
        after = [moment.to(torch.bfloat16 if OTHER[state] == "bf16" else torch.float32) for moment in moments(engine)]
        off = [float(((a.float() - b.float()).abs() / b.float().abs().clamp(min=1e-30)).max()) for a, b in zip(after, before, strict=True)]
        found |= {"resumed moments off": max(off), "resumed": [step(engine, STEPS), step(engine, STEPS + 1)]}
    return found


def main() -> None:
    out = Path(sys.argv[1])
    found = {state: trained(state, out.parent) for state in OTHER}
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
