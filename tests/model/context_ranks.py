"""The same rows on two ranks: as one row of one replica, and shared out as context parallelism does. Written as JSON by the first.

    context_ranks.py OUT.json

Whole, the first of two replicas has the rows and the second as many of padding, which change nothing.
"""

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.contracts import PackedBatch, StepBatch
from nvlm_train.engine.megatron import MegatronEngine
from tests.model.rows import T, make_row
from tests.parity.train_ranks import part_norms

OPEN = ("model.cross_attention.gate_init=0.3",)
CONNECTOR = ("train.trainable=[connector]",)      # cross-attention frozen too: nothing of a reading layer learns
STAGES = {
    "nvlm_d pretrain": CONNECTOR, "nvlm_d sft": ("model.recompute=selective",), "nvlm_x connector": (*OPEN, *CONNECTOR),
    "nvlm_x sft": (*OPEN, "model.recompute=full"), "nvlm_h sft": OPEN,
}
KINDS = ("image", "mixed", "text")


def engine_of(case: str, *layout: str) -> MegatronEngine:
    name = case.split()[0]
    (run,) = compose([f"recipe={name}_tiny", "stage=sft", f"data.pack_tokens={T}", "run.device=cpu", "train.weight_decay=0",
                      *STAGES[case], *layout])
    return MegatronEngine(run)


def measure(case: str, *layout: str) -> dict:
    with closing(engine_of(case, *layout)) as engine:
        name, padding = case.split()[0], make_row("nvlm_d", 0, "empty")
        image, mixed, text = (make_row(name, seed, kind) for seed, kind in enumerate(KINDS))
        # X's first reading span of the last row, tokens 170 to 174, is on the second rank alone; of the others both have some.
        mine = [image, mixed, text, replace(mixed, reads_s4=mixed.reads_s4[:1])]
        rows = mine if engine.data_rank == 0 else [padding] * len(mine)
        report = engine.train_step(StepBatch(0, rows, (), 0), lr=0.0)
        facts = {"loss": report.loss, "grad_norm": report.grad_norm, "weight": report.weight, "tokens": report.tokens,
                 "tiles": report.tiles, **part_norms(engine)}
        facts["evaluated"] = engine.evaluate(rows)["tiny"]
        facts["text"] = engine.train_step(StepBatch(0, [text], (), 0), lr=0.0).grad_norm
        facts["cached"] = engine.evaluate([cached(engine, row) for row in rows])["tiny"]
        facts["logits"] = engine.logits(image, torch.tensor([5, 120, 320])).flatten()[::97].tolist()
    return facts


def cached(engine: MegatronEngine, row: PackedBatch) -> PackedBatch:
    """The same row with what the encoder makes of its tiles."""
    return replace(row, features_nLC=engine.see(row), tiles_nCPP=row.tiles_nCPP[:0])


def main() -> None:
    found = {case: {"whole": measure(case), "shared": measure(case, "layout.context=2")} for case in STAGES}
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
