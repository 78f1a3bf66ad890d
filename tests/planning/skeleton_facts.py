"""Ranks of large runs on tensors without memory, counted and stepped, and written as JSON; `test_skeleton` asserts.

A process of its own, since a simulated job and a real one exclude each other.
"""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from benchmarks.planning_memory import simulated
from nvlm_train.config.compose import compose
from nvlm_train.engine.megatron import whole_model_names
from nvlm_train.errors import ConfigError, NvlmError
from nvlm_train.model.parameters import rank_parameters
from nvlm_train.planning.activations import kept
from nvlm_train.planning.memory import Memory, rank_memory, tile_bytes
from nvlm_train.planning.meta import machine
from nvlm_train.planning.rows import fullest
from nvlm_train.planning.sizes import Sizes
from nvlm_train.planning.skeleton import frozen_stages, simulate, skeleton, standing_bytes
from tests.planning.layouts import LAYOUTS, MORE_LAYOUTS, SHARED_LAYOUTS, overrides


def counted(*settings: str) -> dict:
    """Every rank of one replica built: elements of the whole model, tensors that all tensor-parallel ranks hold once, and every
    difference of names, order or shapes to the arithmetic."""
    run = compose(list(settings))[0]
    layout, elements, wrong, cross = run.layout, 0, [], 0
    world = layout.tensor * layout.pipeline
    for rank in range(world):
        with machine(layout, rank, world) as groups:
            held = [pair for stage in frozen_stages(run) for pair in whole_model_names(stage)]
        for name, param in held:
            once = 0 if groups.tensor_rank and not getattr(param, "tensor_model_parallel", False) else param.numel()
            elements, cross = elements + once, cross + once * (".cross_att" in name or ".pre_cross" in name)
        real = [(name, tuple(param.shape)) for name, param in held]
        expected = [(p.name, p.shape) for chunk in rank_parameters(run, groups.pipeline_rank, groups.tensor_rank) for p in chunk]
        wrong += [(rank, *pair) for pair in zip(real, expected) if pair[0] != pair[1]] + [rank] * (len(real) != len(expected))
    return {"ranks": world, "elements": elements, "cross_attention": cross, "wrong": wrong}


def stepped(settings: list[str], data: int = 2, **sizes: int) -> list[dict]:
    """Exact and predicted bytes of each pipeline stage of a layout, and the shapes of its step. sizes: of its rows, the others being
    those of the fullest."""
    run, found = compose(settings)[0], []
    layout, size = run.layout, replace(fullest(run), **sizes)
    beside = layout.tensor * layout.context * data      # ranks of a stage
    world = layout.pipeline * beside
    for stage in range(layout.pipeline):
        with skeleton(run, stage * beside, world) as built:
            standing = standing_bytes(built.chunks, built.optimizer)
            step = simulate(built, max(2, layout.pipeline * (1 + (layout.virtual > 1))), size)
            trained = {name: tuple(param.shape) for name, param in built.parameters() if param.requires_grad}
        memory = rank_memory(run, world, stage, size)
        found.append({
            "layout": " ".join(settings), "stage": stage, "standing": standing, "peak": step.peak,
            "saved": [step.saved[chunk] for chunk in range(len(step.saved))],
            "predicted_saved": [part.total for part in kept(run, size, stage)],
            "predicted": {name: getattr(memory, name) for name in ("weights", "gradients", "optimizer")},
            "predicted_peak": beside_the_standing(memory) - tile_bytes(Sizes(run, size), data, stage),
            "received": step.received[:1], "sent": step.sent[:1],
            "without_gradient": sorted(trained.keys() - step.gradients.keys()),
            "wrong_gradients": [name for name in step.gradients if step.gradients[name] != trained.get(name)]})
    return found


def beside_the_standing(memory: Memory) -> int:
    return memory.tensors - memory.weights - memory.gradients - memory.optimizer


def refused() -> dict:
    """What is said to who asks for ranks that do not exist, and to who has joined a job."""
    said = {}
    run = compose(["recipe=nvlm_d_tiny", "stage=sft", "layout.tensor=2"])[0]
    try:
        with machine(run.layout, 0, 3):
            pass
    except ConfigError as error:
        said["world"] = str(error)
    said["left"] = dist.is_initialized()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with machine(run.layout, 0, 2):
            pass
    except NvlmError as error:
        said["joined"] = str(error)
    dist.destroy_process_group()
    return said


def main(out: str, which: str) -> None:
    if which == "shared":
        Path(out).write_text(json.dumps({"steps": [stage for layout in SHARED_LAYOUTS for stage in stepped(overrides(layout))]}))
        return
    more = which == "more"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {name: counted(f"recipe=nvlm_{name}", "stage=sft") for name in (["h_72b"] if more else ["d_72b", "x_72b"])}
    facts["grown_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    facts["steps"] = [stage for layout in (MORE_LAYOUTS if more else LAYOUTS) for stage in stepped(overrides(layout))]
    if more:
        facts["few"] = stepped(overrides("d_2b sft 2"), supervised=64)
    facts["refused"] = refused()
    facts["benchmark"] = simulated("recipe=nvlm_d_2b stage=sft model.language.layers=1 model.vision.layers=1")
    Path(out).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], "".join(sys.argv[2:]))
