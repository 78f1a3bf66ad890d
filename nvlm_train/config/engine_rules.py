"""Rules of the engines: what DeepSpeed cannot do here, and settings that only it knows (see `rules`)."""

from collections.abc import Iterator
from dataclasses import fields

from nvlm_train.config.schema import Engine, Run


def deepspeed_layout(run: Run) -> Iterator[str]:
    """ZeRO shares the state of a model out over data-parallel ranks; each of them computes all of the model."""
    if run.engine.name != "deepspeed":
        return
    for key in ("tensor", "pipeline", "virtual", "context"):
        if (size := getattr(run.layout, key)) > 1:
            yield (f"engine=deepspeed needs layout.{key}=1, it is {size}: ZeRO shares the model out over data-parallel ranks only; "
                   f"set layout.{key}=1, or use engine=megatron")


def deepspeed_kernels(run: Run) -> Iterator[str]:
    if run.engine.name == "deepspeed" and run.model.kernels not in ("auto", "torch"):
        yield (f"engine=deepspeed runs torch's kernels only, and model.kernels={run.model.kernels}: use model.kernels=auto, or "
               "engine=megatron")


def deepspeed_settings(run: Run) -> Iterator[str]:
    """Of the other engine they would silently mean nothing."""
    if run.engine.name == "deepspeed":
        return
    for setting in fields(Engine):
        value = getattr(run.engine, setting.name)
        if setting.name != "name" and value != setting.default:
            yield (f"engine.{setting.name}={value} is DeepSpeed's, and engine={run.engine.name}: add engine=deepspeed, or leave it "
                   "out")


ENGINE_RULES = (deepspeed_layout, deepspeed_kernels, deepspeed_settings)
