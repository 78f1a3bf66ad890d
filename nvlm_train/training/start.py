"""Where a job begins: which stages are still to run, and from which weights each of them starts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvlm_train.config.schema import Run
from nvlm_train.engine.checkpoint import CheckpointStore, resolve
from nvlm_train.engine.manifest import Manifest
from nvlm_train.engine.weights_folder import is_weights_folder
from nvlm_train.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How a stage begins.

    checkpoint: a complete step folder, or a folder of weights of a whole model; None for the backbones with a fresh connector.
    step, cursor: finished steps, and consumed slots of the order. Where a stage is resumed they are the checkpoint's, and the
                  optimizer goes on too; otherwise they are 0 and only the weights are taken.
    extra:        what a resumed stage put into that checkpoint beside its state (`SaveFacts.extra`); empty otherwise.
    """

    checkpoint: Path | None = None
    resumed: bool = False
    step: int = 0
    cursor: int = 0
    extra: Mapping = field(default_factory=dict, compare=False)

    def told(self, run: Run) -> str:
        """One sentence for the console."""
        if self.resumed:
            return f"{run.stage}: goes on after step {self.step} of {run.train.steps}, from {self.checkpoint}"
        if self.checkpoint is not None:
            return f"{run.stage}: starts from the weights of {self.checkpoint}, with a fresh optimizer"
        model = run.model
        parts = [f"{name} from {part.weights}" if part.weights else f"{name} with random weights"
                 for name, part in (("vision encoder", model.vision), ("language model", model.language))]
        if model.connector.weights:
            parts.append(f"connector from {model.connector.weights}")
        fresh = [] if model.connector.weights else ["connector"]
        fresh += [] if model.architecture == "nvlm_d" else ["cross-attention"]
        new = f" with {'a ' if fresh == ['connector'] else ''}fresh {' and '.join(fresh)}" if fresh else ""
        return f"{run.stage}: starts from the backbones ({', '.join(parts)}){new}"


def checkpoints_of(run: Run) -> Path:
    """Folder of a stage's checkpoints."""
    return Path(run.run.dir) / "checkpoints" / run.stage


def resume_point(runs: Sequence[Run]) -> tuple[int, Start] | None:
    """(index of the stage in `runs`, its start) that `run.resume` asks for; None to begin with the first stage.

    auto: the newest complete checkpoint of the furthest of these stages in the run directory. A path: that checkpoint, which must
    be of one of these stages. Raises CheckpointError.
    """
    resume = runs[0].run.resume
    if resume == "never":
        return None
    if resume == "auto":
        for index in reversed(range(len(runs))):
            newest = CheckpointStore(checkpoints_of(runs[index]), runs[index].run.keep_last).latest()
            if newest is not None:
                return index, _resumed(newest, runs[index])
        return None
    path = resolve(resume)
    stage = Manifest.read(path).stage
    for index, run in enumerate(runs):
        if run.stage == stage:
            return index, _resumed(path, run)
    raise CheckpointError(
        f"run.resume={resume} is a checkpoint of {stage}, but this job trains {' and '.join(run.stage for run in runs)}: "
        f"add stage={stage}, or take only its weights by init={resume}"
    )


def _resumed(path: Path, run: Run) -> Start:
    manifest = Manifest.read(path)
    if manifest.cursor != manifest.step * run.train.global_batch:
        raise CheckpointError(
            f"{path} used {manifest.cursor} samples in {manifest.step} steps, which is not train.global_batch="
            f"{run.train.global_batch} a step: steps and learning rate would no longer fit the data. Keep the batch, or start a "
            f"new run.dir from these weights by init={path}"
        )
    return Start(path, True, manifest.step, manifest.cursor, manifest.extra)


def start_of(run: Run, before: Run | None) -> Start:
    """How a stage that is not resumed begins: from `run.init` if given (first stage only), else from the last checkpoint of the
    stage before it in this job, else from the backbones. Raises CheckpointError if the stage before left none."""
    if before is not None:
        return Start(resolve(checkpoints_of(before)))
    if not run.init:
        return Start()
    return Start(Path(run.init).expanduser() if is_weights_folder(run.init) else resolve(run.init))
