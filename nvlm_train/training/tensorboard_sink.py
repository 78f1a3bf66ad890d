"""TensorBoard: event files in `<run>/tensorboard/<stage>`. Imported only when asked for."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from nvlm_train.config.schema import Run
from nvlm_train.training.metrics import Sink, StepRecord, flat
from nvlm_train.training.pictures import captioned, picture_of


class TensorBoardSink(Sink):
    """Curves, and answered samples as captioned pictures; what a resumed run will write again is purged first."""

    def __init__(self, stage: Run, run_dir: Path, start_step: int, apart: str = "") -> None:
        """apart: as of `WandbSink`; such events stand in a folder of their own, and nothing is purged."""
        tensorboard = import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(run_dir / "tensorboard" / "_".join(filter(None, (stage.stage, apart))),
                                                 purge_step=None if apart else start_step + 1)

    def step(self, record: StepRecord) -> None:
        self._write(flat(record.row, "train"), record.row["step"])

    def evaluation(self, row: dict) -> None:
        self._write(flat(row, "validation"), row["step"])

    def scored(self, row: dict, shown: Sequence[dict]) -> None:
        task, guard = row["task"], row.get("guard") or {}
        self._write({**flat(row["scores"], f"scores/{task}"), **flat(guard, f"guard/{task}")}, row["step"])
        self._show(f"answers/{task}", row["step"], shown)

    def examples(self, stage: str, step: int, rows: Sequence[dict]) -> None:
        self._show("examples", step, rows)

    def saved(self, stage: str, step: int, seconds: float) -> None:
        self._write({"checkpoint/seconds": seconds}, step)

    def close(self) -> None:
        self._writer.close()

    def _show(self, name: str, step: int, rows: Sequence[dict]) -> None:
        for number, row in enumerate(rows, start=1):
            told = f"{row['prompt']}\nanswer: {row['answer']}\ntruth: {row['truth']}"
            self._writer.add_image(f"{name}/{number}", np.asarray(captioned(picture_of(row), told)), step, dataformats="HWC")
            self._writer.add_text(f"{name}/{number}", told.replace("\n", "  \n"), step)

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
