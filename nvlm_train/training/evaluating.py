"""Hook that asks benchmarks while a stage is trained, and guards the text ability of its language model."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.config.benchmark import Benchmark
from nvlm_train.config.evaluate_rules import benchmarks_of, guarded_of
from nvlm_train.config.layers import may_train
from nvlm_train.config.schema import Run
from nvlm_train.data.encode import Encoder
from nvlm_train.engine.agree import on_main
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import ConfigError, DataError, TrainingError
from nvlm_train.evaluation.benchmark.asking import Asker, BrokenOff, find_questions, has_score, scores_folder
from nvlm_train.evaluation.benchmark.marking import check_scorer
from nvlm_train.evaluation.benchmark.questions import Questions
from nvlm_train.evaluation.guard import Asked, Backbone, TextRegression, Verdict, alarms, judged
from nvlm_train.evaluation.rounds import Place, ask_backbone, score
from nvlm_train.training.hooks import QuietHook, saves_at
from nvlm_train.training.loop import StepDone
from nvlm_train.training.metrics import Sink
from nvlm_train.training.preemption import Preempted
from nvlm_train.training.run_dir import STAGES

AT_ONCE = 64        # questions between two signs of life

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Around:
    """What an evaluation has to do with the rest of its job.

    weights: what the stage starts from, in words. alive: a sign of life, alive(step). stopping: whether this rank was told to stop.
    save: save after this step, and finish saving. status: put down what the guard says (main rank).
    """

    weights: str
    alive: Callable[[int], None]
    stopping: Callable[[], bool]
    save: Callable[[int], None]
    status: Callable[[str | None], None]


class Evaluation(QuietHook):
    """Asks all of `evaluate.benchmarks` after every `evaluate.every` steps, and after checkpoints.

    The guarded ones are asked once more before the first step, of the untouched language model, unless that stands in the run
    directory already. Training is left as it was: asking changes neither weights nor randomness nor the place in the data.
    Raises TextRegression on every rank, after saving, where the text guard is told to stop the run.
    """

    def __init__(self, run: Run, engine: Engine, encoder: Encoder, sinks: Sequence[Sink], around: Around) -> None:
        self._run, self._engine, self._encoder, self._sinks, self._around = run, engine, encoder, sinks, around
        self._dir, self._step = Path(run.run.dir), 0
        self._questions: list[Questions] = []
        self._guarded: dict[str, Backbone] = {}
        self._alarms: dict[str, str] = {}

    def on_start(self, step: int) -> None:
        """Opens every benchmark now: what cannot be read is better known before hours of training."""
        self._step = step
        asked = self._run.evaluate
        for benchmark in benchmarks_of(self._run):
            check_scorer(benchmark)
            self._questions.append(find_questions(self._engine, benchmark, asked.data.get(benchmark.name), asked.limit))
        if may_train(self._run.train.trainable, "language"):
            for benchmark in guarded_of(self._run):
                self._guard(benchmark, step)

        if step > 0 and self._due(step):    # the job before this one was told to stop while it asked
            self._ask_all(leave_out=self._scored())

    def on_step(self, done: StepDone) -> None:
        self._step = done.step
        if self._due(done.step):
            self._ask_all()
        if self._guarded and self._run.guard.stop and (self._alarms or self._told_from_outside(done.step)):
            self._stop(done.step)

    def _due(self, step: int) -> bool:
        asked = self._run.evaluate
        return (asked.at_checkpoints and saves_at(self._run, step)) or (asked.every > 0 and step % asked.every == 0)

    def _scored(self) -> list[str]:
        """Benchmarks that have a score after this step, as the main rank sees it."""
        folder, limit = scores_folder(self._dir, self._run.stage, self._step), self._run.evaluate.limit
        asked = [questions.benchmark for questions in self._questions]
        return on_main(self._engine, "looking for scores", lambda: [
            benchmark.name for benchmark in asked if has_score(folder, benchmark.name, limit, self._longest(benchmark))], TrainingError)

    def _guard(self, benchmark: Benchmark, step: int) -> None:
        """Take up the backbone's answers, or have them given."""
        backbone = Backbone(self._dir, benchmark)
        how = Asked(self._run.stage, self._around.weights, self._run.evaluate.limit, self._longest(benchmark))
        known = on_main(self._engine, "looking for the backbone's answers", backbone.asked, TrainingError)
        if known and (known.limit, known.max_new_tokens) == (how.limit, how.max_new_tokens) and (
                step > 0 or known == how or STAGES.index(known.stage) < STAGES.index(how.stage)):
            self._guarded[benchmark.name] = backbone
        elif step == 0:
            log.info("%s: the text guard asks the backbone %s first", self._run.stage, benchmark.name)
            self._ask_backbone(benchmark, backbone, how)
            self._guarded[benchmark.name] = backbone
        else:
            self._cannot_guard(benchmark, step, known)

    def _ask_backbone(self, benchmark: Benchmark, backbone: Backbone, how: Asked) -> None:
        """Without its answers no step may be taken, for after it the backbone is gone."""
        try:
            ask_backbone(self._asker(benchmark), self._of(benchmark), backbone, how, lambda row: self._tell(row, (), None))
        except BrokenOff:
            raise Preempted(f"stopped while the text guard asked the backbone {benchmark.name}, before the first step of {how.stage}: there is "
                            "nothing to save. The same command goes on from there.") from None

    def _cannot_guard(self, benchmark: Benchmark, step: int, known: Asked | None) -> None:
        why = (f"the backbone was asked with evaluate.limit={known.limit} and answers of up to {known.max_new_tokens} tokens" if known
               else f"{self._run.stage} has done {step} steps, and the backbone was not asked before the first")
        problem = f"{benchmark.name} cannot be guarded: {why}, so there is nothing to compare with"
        if self._run.guard.stop or self._run.guard.benchmarks is not None:
            raise ConfigError(f"{problem}. Start the stage anew in another run.dir, keep the earlier settings, or set guard.benchmarks=[] "
                              "guard.stop=false")
        if self._engine.is_main:
            log.warning("%s", problem)

    def _ask_all(self, leave_out: Sequence[str] = ()) -> None:
        try:
            for questions in self._questions:
                if questions.benchmark.name not in leave_out:
                    self._ask(questions)
        except BrokenOff:
            log.info("asking after step %d was broken off, for the run is told to stop: what is missing is asked when it goes on", self._step)

    def _ask(self, questions: Questions) -> None:
        """Questions that cannot be read any more cost a warning, on every rank alike, and never the run."""
        benchmark, asked = questions.benchmark, self._run.evaluate
        place = Place(self._dir, self._run.stage, self._step)
        try:
            found = score(self._asker(benchmark), questions, place, asked.limit, asked.examples, self._run.guard.margin / 100,
                          self._guarded.get(benchmark.name), self._tell)
        except DataError as error:
            if self._engine.is_main:
                log.warning("%s was not asked after step %d (%s); training goes on", benchmark.name, self._step, error)
            return
        if found and found.alarm:
            self._alarms[found.benchmark] = str(found)
        else:
            self._alarms.pop(benchmark.name, None)

    def _tell(self, row: dict, shown: Sequence[dict], found: Verdict | None) -> None:
        """On the main rank. An alarm is told when it begins, not with every score until it ends."""
        if found:
            row = judged(row, found, found.alarm and found.benchmark not in self._alarms)
            others = [text for name, text in self._alarms.items() if name != found.benchmark]
            self._around.status("; ".join([*others, *([str(found)] if found.alarm else [])]) or None)
        for sink in self._sinks:
            sink.scored(row, shown)

    def _told_from_outside(self, step: int) -> bool:
        """Whether `nvlm eval-checkpoints` has found a regression: it leaves word in the run directory."""
        if not (saves_at(self._run, step) or step % max(1, self._run.run.log_every) == 0):
            return False
        words = on_main(self._engine, "looking for alarms", lambda: alarms(self._dir), TrainingError)
        self._alarms |= {f"eval-checkpoints {number}": word for number, word in enumerate(words)}
        return bool(words)

    def _stop(self, step: int) -> None:
        self._around.save(step)
        raise TextRegression(
            f"stopped by the text guard after step {step} of {self._run.stage}, with everything saved: {'; '.join(self._alarms.values())}. "
            "Blend in more text (data.blend), lower train.lr, or allow more (guard.margin); to go on all the same: guard.stop=false")

    def _asker(self, benchmark: Benchmark) -> Asker:
        return Asker(self._engine, self._encoder, self._longest(benchmark), at_once=AT_ONCE, go_on=self._go_on)

    def _go_on(self) -> bool:
        self._around.alive(self._step)
        return not self._engine.any_rank(self._around.stopping())

    def _longest(self, benchmark: Benchmark) -> int:
        return self._run.evaluate.max_new_tokens or benchmark.max_new_tokens

    def _of(self, benchmark: Benchmark) -> Questions:
        return next(each for each in self._questions if each.benchmark.name == benchmark.name)
