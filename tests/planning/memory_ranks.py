"""Real training steps on two processes: bytes of weights, gradient buffers and optimizer state as found in the engine, and the fullest
moment of a step, beside what the arithmetic says. Rank 0 writes everything as JSON."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.model.parameters import rank_parameters, trained_names
from nvlm_train.planning.buffers import shard_elements
from nvlm_train.planning.live import Live
from nvlm_train.planning.memory import rank_memory
from nvlm_train.planning.rows import fullest
from nvlm_train.planning.skeleton import make_row, standing_bytes

CASES = (
    "recipe=nvlm_d_tiny stage=sft model.dtype=fp32",
    "recipe=nvlm_h_tiny stage=sft model.dtype=bf16 layout.tensor=2 layout.sequence=true",
    "recipe=nvlm_x_tiny stage=pretrain model.dtype=bf16 layout.pipeline=2",
    "recipe=nvlm_d_tiny stage=sft model.dtype=bf16 layout.pipeline=2 layout.virtual=2",
)


def state_bytes(optimizer) -> int:
    """Of the moments, and of master weights where they are copies."""
    total = 0
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not getattr(part, "is_stub_optimizer", False):
            total += sum(t.numel() * t.element_size() for state in part.optimizer.state.values() for t in state.values())
            copies = [param for group in part.shard_fp32_from_float16_groups for param in group if param is not None]
            total += sum(t.numel() * t.element_size() for t in copies)
    return total


def stepped(settings: list[str]) -> dict:
    """Two steps; the second is watched, with the optimizer's moments there from the beginning."""
    run = compose([*settings, "data.pack_tokens=256", "data.pack_tiles=7", "model.compile=off"])[0]     # as on a CPU
    engine = MegatronEngine(run)
    groups = engine.groups
    row = replace(make_row(run, fullest(run), torch.device("cpu")), keys=("row",), sources=(next(iter(run.data.blend)),))
    batch = StepBatch(0, [row] * 2 * run.layout.pipeline, (), 0)
    engine.train_step(batch, 1e-4)
    before = [t for part in engine.chunks for t in part.module.parameters()]
    states = [t for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])
              if not getattr(part, "is_stub_optimizer", False) for state in part.optimizer.state.values() for t in state.values()]
    with Live(ignore=[*before, *states, *(b.grad_data for c in engine.chunks for b in c.buffers)]) as live:
        engine.train_step(batch, 1e-4)
    memory = rank_memory(run, groups.world, groups.pipeline_rank)
    names = trained_names(run.model, tuple(run.train.trainable))
    chunks = [[p for p in chunk if p.name in names] for chunk in rank_parameters(run, groups.pipeline_rank, groups.tensor_rank)]
    width = 12 if run.model.dtype == "bf16" else 8
    found = {**standing_bytes(engine.chunks, engine.optimizer), "optimizer": state_bytes(engine.optimizer)}
    said = {"weights": memory.weights, "gradients": memory.gradients,
            "optimizer": width * sum(shard_elements(chunk, groups.data_size)[groups.data_rank] for chunk in chunks)}
    facts = {"layout": " ".join(settings), "rank": groups.rank, "found": found, "said": said, "most": memory.optimizer,
             "peak": live.peak, "said_peak": memory.tensors - memory.weights - memory.gradients - memory.optimizer}
    gathered = engine.gather_objects(facts)
    engine.close()
    return gathered


def main(out: str) -> None:
    facts = [rank for case in CASES for rank in stepped(case.split())]
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
