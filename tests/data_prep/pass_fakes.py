"""Sources and judges for tests of passes. In a file of their own, so that other processes can import them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.passes import Kept, Outcome, Rejected
from nvlm_train.contracts import Sample, Turn
from nvlm_train.errors import SampleRefused


def text_sample(key: str, question: str = "2 + 2?", answer: str = "4") -> Sample:
    return Sample(key, "numbers", (), (Turn("user", question), Turn("assistant", answer)))


@dataclass(frozen=True)
class Numbers:
    """`units` units of `each` samples, numbered; every `broken`-th is rejected. Stops before the unit named in the file `stop`."""

    units_: int = 3
    each: int = 5
    broken: int = 4
    stop: Path | None = None

    def units(self) -> list[str]:
        return [f"part-{number}" for number in range(self.units_)]

    def outcomes(self, unit: str) -> Iterator[Outcome]:
        if self.stop and self.stop.is_file() and self.stop.read_text() == unit:
            yield Kept(text_sample("half"))
            raise KeyboardInterrupt
        first = int(unit.rpartition("-")[2]) * self.each
        for number in range(first, first + self.each):
            if number % self.broken == 0:
                yield Rejected(f"n{number}", "divisible", f"{number} is a multiple of {self.broken}")
            else:
                yield Kept(text_sample(f"n{number}", f"{number} + 0?", str(number)), ("counted",) if number % 2 else ())

    def settings(self) -> dict:
        return {"each": self.each, "broken": self.broken}


@dataclass(frozen=True)
class Shouting:
    """A judge: answers in capitals; those longer than `longest` are refused."""

    longest: int = 1

    def __call__(self, sample: Sample) -> Kept:
        answer = sample.turns[-1].text
        if len(answer) > self.longest:
            raise SampleRefused("long_answer", f"{len(answer)} characters, at most {self.longest}")
        return Kept(replace(sample, turns=(*sample.turns[:-1], Turn("assistant", f"{answer}!"))), ("shouted",))
