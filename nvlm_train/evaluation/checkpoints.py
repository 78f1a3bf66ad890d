"""`nvlm eval-checkpoints`: ask every checkpoint of a run what it was not asked yet, beside the training or after it.

The main rank chooses, all ranks work. A checkpoint's folder of scores is locked while it is asked, so that several such jobs share the
work; a score's file appears when it is whole, so what was broken off is done again.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from nvlm_train.config.evaluate_rules import benchmarks_of, guarded_of
from nvlm_train.config.layers import may_train
from nvlm_train.config.schema import Run
from nvlm_train.engine.agree import on_main
from nvlm_train.engine.folders import step_of, why_incomplete
from nvlm_train.errors import CheckpointError, ConfigError, TrainingError
from nvlm_train.evaluation.benchmark.asking import Asker, find_questions, has_score, scores_folder
from nvlm_train.evaluation.benchmark.marking import check_scorer
from nvlm_train.evaluation.benchmark.questions import Questions
from nvlm_train.evaluation.following import Following
from nvlm_train.evaluation.guard import ALARM, Backbone, Verdict, judged
from nvlm_train.evaluation.kept import APART, keep_row
from nvlm_train.evaluation.opening import Empty, open_empty
from nvlm_train.evaluation.rounds import Place, score
from nvlm_train.training.logs import write_atomically
from nvlm_train.training.progress import told
from nvlm_train.training.report import write_report
from nvlm_train.training.telemetry import telemetry

POLL_S = 15.0       # between two looks for new checkpoints

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A checkpoint, and the benchmarks that it has no score of."""

    stage: str
    step: int
    path: Path
    names: tuple[str, ...]


@dataclass
class Queue:
    """What is left to do in a run directory, as the main rank sees it.

    wanted: benchmark -> (limit, longest answer). passed: checkpoints that are not looked at again, and why. held: the lock of the one that is worked on.
    """

    run_dir: Path
    stages: Sequence[str]
    wanted: Mapping[str, tuple[int, int]]
    following: Following
    passed: dict[Path, str] = field(default_factory=dict)
    held: ExitStack = field(default_factory=ExitStack)

    def take(self) -> Work | None:
        """The oldest checkpoint with something to do that nobody else works on, now locked; None if there is none."""
        self.done()
        left = [name for name in self.wanted if name not in self.following.asks_itself()]
        for stage in self.stages:
            for path in sorted((self.run_dir / "checkpoints" / stage).glob("step-*")):
                step = step_of(path)
                if step is None or path in self.passed or not (missing := self._missing(stage, step, left)):
                    continue
                if why_incomplete(path) is None and self._lock(stage, step) and (missing := self._missing(stage, step, left)):
                    return Work(stage, step, path, missing)
        return None

    def done(self) -> None:
        """Let go of the checkpoint."""
        self.held.close()

    def _missing(self, stage: str, step: int, names: Sequence[str]) -> tuple[str, ...]:
        folder = scores_folder(self.run_dir, stage, step)
        return tuple(name for name in names if not has_score(folder, name, *self.wanted[name]))

    def _lock(self, stage: str, step: int) -> bool:
        folder = scores_folder(self.run_dir, stage, step)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        self.done()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self.held.callback(_let_go, lock)
        return True


def _let_go(lock: FileLock) -> None:
    lock.release()
    with suppress(OSError):
        Path(lock.lock_file).unlink()


def eval_checkpoints_command(runs: Sequence[Run], follow: bool) -> None:
    """Ask all checkpoints of the run directory `runs[0].run.dir` the benchmarks of `evaluate.benchmarks`.

    follow: go on with those that are still to come, until the training has ended. Scores go where a training's own go, to wandb as a run
    of its own. A collective. Raises ConfigError if there is nothing to ask, TrainingError where nothing can be written.
    """
    if not runs[0].evaluate.benchmarks:
        raise ConfigError("nothing to ask: the run names no benchmark; add evaluate.benchmarks=[NAME,…] (and evaluate.data.NAME=FOLDER)")
    run_dir = Path(runs[0].run.dir)
    with closing(Evaluator(runs, run_dir)) as evaluator:
        asked = runs[0].evaluate
        wanted = {benchmark.name: (asked.limit, asked.max_new_tokens or benchmark.max_new_tokens) for benchmark in benchmarks_of(runs[0])}
        queue = Queue(run_dir, [run.stage for run in runs], wanted, Following(run_dir))
        with closing(queue.held):
            while True:
                # In this order: a checkpoint that came between the two looks is then still found.
                over, work = on_main(evaluator.engine, "looking for checkpoints", lambda: (queue.following.over(), queue.take()), TrainingError)
                if work is not None:
                    _one(evaluator, queue, work)
                elif over or not follow:
                    break
                else:
                    time.sleep(POLL_S)
    log.info("nothing is left to ask in %s", run_dir)


def _one(evaluator: "Evaluator", queue: Queue, work: Work) -> None:
    try:
        evaluator.score(work)
    except CheckpointError as error:
        if on_main(evaluator.engine, "looking at it again", work.path.is_dir, TrainingError):
            raise
        log.warning("%s was deleted before it was asked (run.keep_last), and has no score: %s", work.path, error)
        queue.passed[work.path] = str(error)


class Evaluator:
    """A model of one stage at a time, filled from one checkpoint after the other, and where its scores go."""

    def __init__(self, runs: Sequence[Run], run_dir: Path) -> None:
        self._runs, self._dir = {run.stage: run for run in runs}, run_dir
        self._open(runs[0])

    @property
    def engine(self):
        return self._model.engine

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self.engine.close()

    def score(self, work: Work) -> None:
        """Ask one checkpoint. A collective. Raises CheckpointError where it cannot be loaded."""
        if work.stage != self._model.run.stage:
            self.close()
            self._open(self._runs[work.stage])
        run = self._model.run
        log.info("%s step %d: %s", work.stage, work.step, ", ".join(work.names))
        self._model.fill(work.path)
        for name in work.names:
            questions = self._questions[name]
            asker = Asker(self.engine, self._model.encoder, run.evaluate.max_new_tokens or questions.benchmark.max_new_tokens)
            place = Place(self._dir, work.stage, work.step, str(work.path))
            score(asker, questions, place, run.evaluate.limit, run.evaluate.examples, run.guard.margin / 100, self._backbone(name), self._tell)

    def _open(self, run: Run) -> None:
        self._model: Empty = open_empty(run)
        self._questions: dict[str, Questions] = {}
        for benchmark in benchmarks_of(run):
            check_scorer(benchmark)
            folder = run.evaluate.data.get(benchmark.name)
            self._questions[benchmark.name] = find_questions(self.engine, benchmark, folder, run.evaluate.limit)
        self._sinks = telemetry(list(self._runs.values()), run, self._dir, 0, apart=APART) if self.engine.is_main else []

    def _backbone(self, name: str) -> Backbone | None:
        """The backbone to compare with: of a guarded benchmark, in a stage that trains the language model, asked alike."""
        run = self._model.run
        guarded = [benchmark for benchmark in guarded_of(run) if benchmark.name == name]
        if not guarded or not may_train(run.train.trainable, "language"):
            return None
        backbone = Backbone(self._dir, guarded[0])
        asked = on_main(self.engine, "looking for the backbone's answers", backbone.asked, TrainingError)
        longest = run.evaluate.max_new_tokens or guarded[0].max_new_tokens
        if asked and (asked.limit, asked.max_new_tokens) == (run.evaluate.limit, longest):
            return backbone
        log.warning("%s is not guarded: the backbone was %s", name, "asked otherwise" if asked else "not asked before training")
        return None

    def _tell(self, row: dict, shown: Sequence[dict], found: Verdict | None) -> None:
        """On the main rank."""
        if found and found.alarm:
            row = judged(row, found, raised=True)
            if self._model.run.guard.stop:
                place = scores_folder(self._dir, row["stage"], row["step"]) / ALARM
                write_atomically(place, f"{found}\n".encode())
        print(told(row), flush=True)
        keep_row(self._dir, row)
        for sink in self._sinks:
            sink.scored(row, shown)
        write_report(self._dir)
