"""A folder of shards as the loader gives it to a run: nothing is trained."""

from pathlib import Path

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.contracts import StepBatch
from nvlm_train.data.loader import build_loader
from nvlm_train.data.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("tiny")


def run_on(folder: Path, samples: int, batch: int = 5) -> Run:
    """One epoch over a folder of so many samples."""
    return compose(["recipe=nvlm_d_tiny", "stage=sft", f"data.blend={{x:{{path:{folder}}}}}", "data.validation={}",
                    f"train.global_batch={batch}", f"train.steps={samples // batch}", "train.warmup_steps=0"])[0]


def steps_of(folder: Path, samples: int, batch: int = 5) -> list[StepBatch]:
    """Its steps. Raises what a run would raise before its first step, and while it reads."""
    with build_loader(run_on(folder, samples, batch), TOKENIZER, 0, 1) as loader:
        return list(loader)


def refused(steps: list[StepBatch]) -> dict[str, str]:
    """Key -> reason of every slot that stayed empty."""
    return {slot.key: slot.refused for step in steps for slot in step.slots if slot.refused}
