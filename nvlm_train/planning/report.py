"""What `nvlm plan` says of one stage, as plain numbers: the one source of its tables and of its JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from nvlm_train.config.schema import Run
from nvlm_train.config.split import stage_layers
from nvlm_train.model.accounting import COMPONENTS
from nvlm_train.planning.devices import GIB
from nvlm_train.planning.memory import Memory
from nvlm_train.planning.plan import Plan
from nvlm_train.planning.reasons import compared, overrides, parts, settings
from nvlm_train.planning.samples import means
from nvlm_train.planning.search import Found


@dataclass(frozen=True)
class Verdict:
    """Of one stage. own: the recipe's layout, None where the cluster does not divide by it; problem: why the stage cannot run as it
    is; assumed: sentences on what was not read."""

    run: Run
    own: Plan | None
    found: Found
    assumed: Sequence[str]
    problem: str | None


def as_dict(verdict: Verdict) -> dict:
    """Seconds, bytes and operations, nothing rounded."""
    found = verdict.found
    return {
        "fits": verdict.problem is None, "problem": verdict.problem, "assumed": list(verdict.assumed),
        "own": None if verdict.own is None else _own(verdict.own),
        "proposals": [_proposal(plan, verdict) for plan in found.best],
        "tried": found.tried, "refused": found.refused,
    }


def _own(plan: Plan) -> dict:
    run, time, cluster = plan.run, plan.time, plan.bench.cluster
    return {
        "recipe": run.recipe, "stage": run.stage, "gpu": cluster.gpu.name, "nodes": cluster.nodes, "gpus": cluster.world,
        "layout": settings(run), "kernels": plan.bench.fabric(run).kernels.line(), "replicas": plan.bench.replicas(run),
        "gpu_memory": cluster.gpu.memory,
        "memory": [_memory(plan, rank) for rank in range(run.layout.pipeline)], "fullest": plan.fullest, "tight": not plan.fits_surely,
        "sample": means(plan.bench.samples), "rows": len(plan.step.rows), "fill": plan.step.fill, "imbalance": plan.step.imbalance,
        "flops": {name: {"useful": getattr(time.useful, name), "done": getattr(time.done, name)} for name in COMPONENTS},
        "bubble": time.pipeline.bubble, "balance": time.pipeline.balance, "busy": list(time.pipeline.busy),
        "pipeline_s": time.pipeline.seconds, "layer_times": _parts_measured(plan),
        "volumes": [vars(volumes) for volumes in time.volumes],
        "step_s": time.seconds, "parts": parts(plan), "mfu": plan.mfu, "samples_per_s": run.train.global_batch / time.seconds,
        "steps": run.train.steps, "days": plan.days, "gpu_hours": plan.gpu_hours,
    }


def _parts_measured(plan: Plan) -> dict | None:
    """None where all times are modelled."""
    measured = plan.bench.memo.measured
    if measured is None:
        return None
    return {"file": measured.path, "device": measured.device, "torch": measured.torch, "megatron_core": measured.megatron_core,
            "row": vars(measured.row), "parts": measured.beside_the_model(plan.run, plan.bench.fabric(plan.run).place(plan.run.layout))}


def _memory(plan: Plan, rank: int) -> dict:
    memory = plan.memory[rank]
    layers = stage_layers(plan.run.model.language.layers, plan.run.layout, rank)
    return {"rank": rank, "layers": [[part.start, part.stop] for part in layers], "total": memory.total,
            **{field.name: getattr(memory, field.name) for field in fields(Memory)}}


def _proposal(plan: Plan, verdict: Verdict) -> dict:
    return {"layout": settings(plan.run), "step_s": plan.time.seconds, "mfu": plan.mfu, "days": plan.days, "gpu_hours": plan.gpu_hours,
            "memory": plan.memory[plan.fullest].total, "bubble": plan.time.pipeline.bubble, "fill": plan.step.fill,
            "why": "" if verdict.own is None else compared(plan, verdict.own), "words": overrides(plan.run, verdict.run)}


def gib(count: float) -> str:
    return f"{count / GIB:.1f}"
