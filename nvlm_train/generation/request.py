"""What is asked of a generator, and what it reports."""

from dataclasses import dataclass

from nvlm_train.contracts import EncodedSample
from nvlm_train.errors import DataError

STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen.

    temperature 0: the likeliest token each time. Above it tokens are drawn, of the smallest set of likeliest tokens whose
    probabilities sum to top_p; the same seed draws the same tokens, whatever other requests run beside. Raises DataError.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, fits, bounds in (
                ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
                ("temperature", self.temperature, 0 <= self.temperature <= 100, "0 (greedy) to 100"),
                ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
                ("seed", self.seed, 0 <= self.seed < 2**63, "0 to 2^63 - 1")):
            if not fits:
                raise DataError(f"{name} is {value}; it is {bounds}")


@dataclass(frozen=True)
class Request:
    """One prompt to be continued. id: unique among those that run."""

    id: str
    prompt: EncodedSample
    sampling: Sampling


@dataclass(frozen=True)
class News:
    """What a round brought to one request.

    token: the next of its answer; None if what came is the token that closes it. finish: None while it goes on, else `stop` (it
    closed its answer) or `length` (max_new_tokens reached). read_s: with the first token, seconds in which the prompt and its pictures
    were read.
    """

    id: str
    token: int | None
    finish: str | None = None
    read_s: float | None = None
