"""Text-only conversations in the forms that public sets have: ShareGPT, Alpaca, question and answer, OpenAI messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from data_prep.convert.base import OneSample, Paths
from data_prep.convert.fields import lookup, required, required_text
from data_prep.convert.turns import conversation
from nvlm_train.contracts import Sample, Turn


@dataclass(frozen=True, kw_only=True)
class Chat(OneSample):
    """Turns as they are; a system turn is kept.

    records: files or globs. format: `sharegpt` (`conversations` of from, value), `alpaca` (instruction, input, output), `qa` (question,
    answer), `messages` (`messages` of role, content). turns, question, answer, system: names of the fields, where they differ from
    the format's own.
    """

    TASK: ClassVar[str] = "chat"

    records: Paths
    format: Literal["sharegpt", "alpaca", "qa", "messages"]
    turns: str = ""
    question: str = ""
    answer: str = ""
    system: str = ""

    def made(self, key: str, record: Mapping) -> Sample:
        turns = self._listed(record) if self.format in ("sharegpt", "messages") else self._asked(record)
        system = lookup(record, self.system or "system")
        if isinstance(system, str) and system.strip() and turns[0].role != "system":
            turns = [Turn("system", system.strip()), *turns]
        return self.sample(key, (), turns)

    def _listed(self, record: Mapping) -> list[Turn]:
        if self.format == "sharegpt":
            return conversation(required(record, self.turns or "conversations"), "from", "value")
        return conversation(required(record, self.turns or "messages"), "role", "content")

    def _asked(self, record: Mapping) -> list[Turn]:
        alpaca = self.format == "alpaca"
        question = required_text(record, self.question or ("instruction" if alpaca else "question"))
        given = lookup(record, "input") if alpaca else None
        if isinstance(given, str) and given.strip():
            question = f"{question}\n\n{given.strip()}"
        return [Turn("user", question), Turn("assistant", required_text(record, self.answer or ("output" if alpaca else "answer")))]
