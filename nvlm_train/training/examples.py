"""A few held-out questions answered now and then, so that people see what the model says and not only its loss."""

from collections.abc import Sequence
from pathlib import Path

from nvlm_train.config.schema import Run
from nvlm_train.data.encode import Encoder
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.engine.interface import Engine
from nvlm_train.evaluation.predictions import rows
from nvlm_train.evaluation.tasks import ask, read_questions
from nvlm_train.training.hooks import QuietHook
from nvlm_train.training.loop import StepDone
from nvlm_train.training.metrics import Sink
from nvlm_train.training.report import write_predictions

MAX_NEW_TOKENS = 24


class Examples(QuietHook):
    """Asks `run.examples` questions of the validation sources, shared out evenly, every `run.examples_every` steps and when a stage is
    finished. Always the same questions.

    Not asked when the stage stops early: the time left belongs to the checkpoint.
    """

    def __init__(self, run: Run, engine: Engine, tokenizer: Tokenizer, sinks: Sequence[Sink]) -> None:
        self._run, self._engine, self._tokenizer, self._sinks = run, engine, tokenizer, sinks

    def on_step(self, done: StepDone) -> None:
        every = self._run.run.examples_every
        if every > 0 and done.step % every == 0 and done.step < self._run.train.steps:
            self._ask(done.step)

    def on_end(self, step: int) -> None:
        if step == self._run.train.steps:
            self._ask(step)

    def _ask(self, step: int) -> None:
        sources = self._run.data.validation
        if not sources:
            return
        share = max(1, self._run.run.examples // len(sources))
        questions = [sample for name, source in sources.items() for sample in read_questions(source.path, name, share)]
        encoder = Encoder(self._run.model, self._run.data, self._tokenizer)
        answers = ask(self._engine, encoder, questions, MAX_NEW_TOKENS)
        if self._engine.is_main:
            shown = rows(answers, encoder, MAX_NEW_TOKENS)
            write_predictions(Path(self._run.run.dir), shown)
            for sink in self._sinks:
                sink.examples(self._run.stage, step, shown)
