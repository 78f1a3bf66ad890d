"""wandb and TensorBoard, when asked for. Neither may ever stop a run: a failure costs one warning and that sink goes quiet.

Both are imported only when used. Main rank only. Everything of a stage is logged under its name with the stage's own step as the
axis ("pretrain/loss" over "pretrain/step"), because steps restart with every stage.
"""

import logging
import uuid
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from nvlm_train.config.dump import as_tree
from nvlm_train.config.schema import Run
from nvlm_train.training.metrics import Sink, StepRecord

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30


def telemetry(runs: Sequence[Run], stage: Run, run_dir: Path, start_step: int) -> list[Sink]:
    """The outside sinks that `stage` asks for. runs: all stages of this job, for the recorded configuration (without secrets)."""
    sinks: list[Sink] = []
    if stage.run.wandb != "off":
        sinks.append(Guarded("wandb", lambda: WandbSink(runs, stage, run_dir)))
    if stage.run.tensorboard:
        sinks.append(Guarded("TensorBoard", lambda: TensorBoardSink(stage, run_dir, start_step)))
    return sinks


class Guarded:
    """A sink that may fail: the first exception of its making or of any call is a warning, after it nothing more is sent."""

    def __init__(self, name: str, make) -> None:
        self._name = name
        self._sink: Sink | None = None
        self._sink = self._attempt(make)

    def step(self, record: StepRecord) -> None:
        if self._sink is not None:
            self._attempt(lambda: self._sink.step(record))

    def evaluation(self, row: dict) -> None:
        if self._sink is not None:
            self._attempt(lambda: self._sink.evaluation(row))

    def close(self) -> None:
        if self._sink is not None:
            self._attempt(self._sink.close)

    def _attempt(self, call):
        # Whatever a client of an outside service raises (its own classes, import errors, sockets) has the same answer.
        try:
            return call()
        except Exception as error:  # noqa: BLE001
            self._sink = None
            first = (str(error).splitlines() or [""])[0]
            kind = type(error).__name__
            log.warning("%s is off for the rest of this stage (%s: %s); training goes on", self._name, kind, first)
            return None


class WandbSink:
    """One wandb run per run directory: its id is kept there, so that a resumed job and the next stage write into the same run."""

    def __init__(self, runs: Sequence[Run], stage: Run, run_dir: Path) -> None:
        wandb = import_module("wandb")
        self._run = wandb.init(
            project="nvlm_train", name=run_dir.resolve().name, id=_kept_id(run_dir / "wandb_id"), resume="allow",
            dir=str(run_dir), mode=stage.run.wandb, config=as_tree(runs), reinit="finish_previous",
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off", silent=True),
        )
        self._run.define_metric(f"{stage.stage}/step")
        self._run.define_metric(f"{stage.stage}/*", step_metric=f"{stage.stage}/step")

    def step(self, record: StepRecord) -> None:
        self._run.log(flat(record.row, record.row["stage"]))

    def evaluation(self, row: dict) -> None:
        self._run.log({f"{row['stage']}/step": row["step"], **flat(row, f"{row['stage']}/validation")})

    def close(self) -> None:
        self._run.finish()


def _kept_id(path: Path) -> str:
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="ascii")
    return path.read_text(encoding="ascii").strip()


class TensorBoardSink:
    """Event files in `<run>/tensorboard/<stage>`; what a resumed run will write again is purged first."""

    def __init__(self, stage: Run, run_dir: Path, start_step: int) -> None:
        tensorboard = import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(run_dir / "tensorboard" / stage.stage, purge_step=start_step + 1)

    def step(self, record: StepRecord) -> None:
        self._write(flat(record.row, "train"), record.row["step"])

    def evaluation(self, row: dict) -> None:
        self._write(flat(row, "validation"), row["step"])

    def close(self) -> None:
        self._writer.close()

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


def flat(row: dict, prefix: str) -> dict[str, float]:
    """The numbers of a row under `prefix/`, nested ones as `prefix/tflops/vit`; text and nulls are left out."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}/{key}")
        elif isinstance(value, (int, float)):
            found[f"{prefix}/{key}"] = float(value) if not isinstance(value, int) or isinstance(value, bool) else value
    return found
