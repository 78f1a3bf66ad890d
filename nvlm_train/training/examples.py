"""A few held-out questions answered at the end of a stage, so that the report shows what the model says and not only its loss."""

from pathlib import Path

from nvlm_train.config.schema import Run
from nvlm_train.data.encode import Encoder
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.engine.interface import Engine
from nvlm_train.evaluation.predictions import rows
from nvlm_train.evaluation.tasks import ask, read_questions
from nvlm_train.training.hooks import QuietHook
from nvlm_train.training.report import write_predictions

MAX_NEW_TOKENS = 24


class Examples(QuietHook):
    """Asks `run.examples` questions of the validation sources, shared out evenly, when a stage is finished.

    Not asked when the stage stops early: the time left belongs to the checkpoint.
    """

    def __init__(self, run: Run, engine: Engine, tokenizer: Tokenizer) -> None:
        self._run, self._engine, self._tokenizer = run, engine, tokenizer

    def on_end(self, step: int) -> None:
        sources = self._run.data.validation
        if step < self._run.train.steps or not sources:
            return
        share = max(1, self._run.run.examples // len(sources))
        questions = [sample for name, source in sources.items() for sample in read_questions(source.path, name, share)]
        encoder = Encoder(self._run.model, self._run.data, self._tokenizer)
        answers = ask(self._engine, encoder, questions, MAX_NEW_TOKENS)
        if self._engine.is_main:
            write_predictions(Path(self._run.run.dir), rows(answers, encoder, MAX_NEW_TOKENS))
