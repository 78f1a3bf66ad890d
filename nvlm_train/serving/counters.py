"""What `/metrics` says, in the text format of Prometheus."""

from collections import Counter


class Counters:
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.answers: Counter[int] = Counter()      # HTTP status -> completions that ended with it; 499: the client left
        self.read_tokens = self.written_tokens = 0
        self.seconds: Counter[str] = Counter()      # where they went, over all answers

    def text(self) -> str:
        lines = _family("requests_in_flight", "gauge", "requests that are read, wait or are answered", {"": self.in_flight})
        lines += _family("requests_total", "counter", "chat completions by HTTP status; 499: the client left",
                         {f'{{status="{status}"}}': count for status, count in sorted(self.answers.items())})
        lines += _family("tokens_total", "counter", "tokens of prompts, pictures included, and of answers",
                         {'{kind="prompt"}': self.read_tokens, '{kind="answer"}': self.written_tokens})
        lines += _family("seconds_total", "counter", "where the time of answers went",
                         {f'{{part="{part}"}}': round(seconds, 6) for part, seconds in sorted(self.seconds.items())})
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, meaning: str, values: dict[str, float]) -> list[str]:
    lines = [f"nvlm_{name}{label} {value}" for label, value in values.items()]
    return [f"# HELP nvlm_{name} {meaning}", f"# TYPE nvlm_{name} {kind}", *lines]
