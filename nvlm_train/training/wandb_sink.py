"""wandb: one run per run directory, over both stages and all restarts. Imported only when asked for."""

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from nvlm_train.config.dump import as_tree
from nvlm_train.config.schema import Run
from nvlm_train.optional import reason
from nvlm_train.redaction import of_environment, redact, redact_text
from nvlm_train.training.logs import write_atomically
from nvlm_train.training.metrics import Sink, StepRecord, flat
from nvlm_train.training.pictures import picture_of

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30
_TAG = 64           # letters, wandb's limit
COLUMNS = ("image", "task", "key", "prompt", "answer", "truth", "correct")


class WandbSink(Sink):
    """A stage as part of the directory's wandb run; the id is kept there, so that a resumed job writes into the same one.

    Everything is logged under the stage's name with its own step as the axis ("pretrain/loss" over "pretrain/step"), because steps
    restart with every stage. `resumed_at` is the step from which a job went on: of the rows that a step has after a restart, those with
    the highest count. wandb also numbers rows itself and refuses numbers it has seen, so each job takes a range of its own (`_range_from`).

    A server that does not answer within INIT_TIMEOUT_S, or refuses, costs a note: the rows are kept in a file, for `wandb sync`.
    """

    def __init__(self, runs: Sequence[Run], stage: Run, run_dir: Path, start_step: int, job: Mapping, apart: str = "") -> None:
        """apart: what is added to the run's name where another process than the training reports, such as "scores": two must not write
        into one run of wandb."""
        # Where the pictures of tables wait until they are sent: a home directory may be small, and another one on each node.
        os.environ.setdefault("WANDB_DATA_DIR", str((run_dir / "wandb").resolve()))
        self._wandb = import_module("wandb")
        self._stage, self._resumed_at = stage.stage, start_step
        self._number = _range_from(run_dir / "wandb" / "_".join(filter(None, ("next", apart, "row"))), (3 + len(stage.evaluate.benchmarks)) * (stage.train.steps - start_step + 1) + 100)
        self._run = self._open(stage.run.wandb, runs, stage, run_dir, job, apart)
        self._run.define_metric(f"{stage.stage}/step")
        self._run.define_metric(f"{stage.stage}/*", step_metric=f"{stage.stage}/step")

    def step(self, record: StepRecord) -> None:
        self._log({**flat(record.row, self._stage), f"{self._stage}/resumed_at": self._resumed_at})

    def evaluation(self, row: dict) -> None:
        self._log({f"{row['stage']}/step": row["step"], **flat(row, f"{row['stage']}/validation")})

    def scored(self, row: dict, shown: Sequence[dict]) -> None:
        """The alarm of the text guard is wandb's too, once: it mails or posts it as the account says."""
        stage, task, guard = row["stage"], row["task"], row.get("guard") or {}
        values = {**flat(row["scores"], f"{stage}/scores/{task}"), **flat(guard, f"{stage}/guard/{task}")}
        self._log({f"{stage}/step": row["step"], **values, **({f"{stage}/answers/{task}": self._table(shown)} if shown else {})})
        if guard.get("raised"):
            self._run.alert(title=f"{task} regressed", text=guard["text"], level=self._wandb.AlertLevel.WARN)

    def examples(self, stage: str, step: int, rows: Sequence[dict]) -> None:
        self._log({f"{stage}/step": step, f"{stage}/examples": self._table(rows)})

    def saved(self, stage: str, step: int, seconds: float) -> None:
        self._log({f"{stage}/step": step, f"{stage}/checkpoint/seconds": seconds})

    def close(self) -> None:
        self._run.finish()

    def _table(self, rows: Sequence[dict]):
        table = self._wandb.Table(columns=list(COLUMNS))
        for row in rows:
            table.add_data(self._wandb.Image(picture_of(row)), *(row[name] for name in COLUMNS[1:]))
        return table

    def _log(self, values: dict) -> None:
        self._run.log(values, step=self._number)
        self._number += 1

    def _open(self, mode: str, runs: Sequence[Run], stage: Run, run_dir: Path, job: Mapping, apart: str):
        """The run, online if that is asked for and possible, else offline. Secrets stay out: wandb keeps the configuration, the
        command line and git's remote address in several files, so it gets the first redacted and the others not at all."""
        wandb, secrets = self._wandb, of_environment(os.environ)
        tags = [stage.recipe, stage.model.architecture, *(run.stage for run in runs)]
        settings = wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off", silent=True, disable_git=True, disable_code=True,
                                  x_disable_meta=True, x_save_requirements=False)
        arguments = {
            "project": stage.run.wandb_project, "entity": stage.run.wandb_entity, "name": " ".join(filter(None, (run_dir.resolve().name, apart))),
            "id": _kept_id(run_dir / "_".join(filter(None, ("wandb", apart, "id")))), "resume": "allow", "dir": str(run_dir), "reinit": "finish_previous",
            "tags": list(dict.fromkeys(redact_text(tag)[:_TAG] for tag in tags)), "allow_val_change": True,
            "config": redact({**as_tree(runs), "job": dict(job)}, secrets), "settings": settings,
        }
        try:
            return wandb.init(mode=mode, **arguments)
        except Exception as error:      # unreachable, no key, no such project: the answer is the same
            if mode != "online":
                raise
            log.warning("wandb cannot be reached (%s): this stage is kept in %s, send it later with `wandb sync`",
                        reason(error), run_dir / "wandb")
            wandb.teardown()    # its background process holds on to the id of a run that never began
            return wandb.init(mode="offline", **arguments)


def _kept_id(path: Path) -> str:
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _range_from(path: Path, rows: int) -> int:
    """The first of `rows` numbers that no other job of this run directory has; gaps do no harm."""
    first = int(path.read_text(encoding="ascii")) if path.exists() else 0
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, f"{first + rows}\n".encode("ascii"))
    return first
