"""What `nvlm serve` and `nvlm chat` are asked beside a run's settings: `serve.…` and `chat.…`. No part of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nvlm_train.config.typed import build
from nvlm_train.config.words import take_group
from nvlm_train.errors import ConfigError


@dataclass(frozen=True)
class Serve:
    """Limits hold for every request; what goes beyond is refused, never cut."""

    host: str = "127.0.0.1"     # 0.0.0.0: every address of this machine
    port: int = 8000            # 0: any free one
    name: str | None = None     # of the model, as clients ask for it; None: the recipe's
    api_key_file: str | None = None     # clients must show the key in it; None: that of $NVLM_API_KEY, or nobody must
    slots: int = 16             # requests that are answered at a time
    max_waiting: int = 64       # requests beside those; further ones are sent away (429)
    max_new_tokens: int = 512   # of an answer
    max_prompt_tokens: int | None = None    # pictures included; None: what the model takes (data.max_tokens)
    max_images: int = 8         # of a request, over its whole conversation
    max_pixels: int = 25_000_000        # of a picture, by its header
    max_body_mb: float = 32.0   # MiB of a request
    timeout_s: float = 120.0    # seconds of a request, from its first byte to its last token
    drain_s: float = 25.0       # seconds that running requests get when the server is told to end


@dataclass(frozen=True)
class Chat:
    """How `nvlm chat` answers."""

    system: str | None = None   # a system turn; None: that of the run (data.system_prompt)
    max_new_tokens: int = 256   # of an answer
    temperature: float = 0.0    # 0: the likeliest token each time
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Spoken:
    """A checkpoint, and how it is talked to."""

    checkpoint: str | None = None
    serve: Serve = field(default_factory=Serve)
    chat: Chat = field(default_factory=Chat)


_AT_LEAST = {"port": 0, "slots": 1, "max_waiting": 0, "max_new_tokens": 1, "max_prompt_tokens": 1, "max_images": 0, "max_pixels": 1,
             "max_body_mb": 0.001, "timeout_s": 0.1, "drain_s": 0}


def take_serve(words: Sequence[str]) -> tuple[Spoken, list[str]]:
    """(what is asked of the server, the other words, which are settings of the run). Raises ConfigError with every problem found."""
    spoken, rest = _take(words, "serve", Serve)
    problems = [f"serve.{name}={value:g} must be at least {_AT_LEAST[name]:g}" for name, value in vars(spoken.serve).items()
                if name in _AT_LEAST and value is not None and not value >= _AT_LEAST[name]]
    if spoken.serve.port > 65_535:
        problems.append(f"serve.port={spoken.serve.port} must be at most 65535")
    if problems:
        raise ConfigError(problems)
    return spoken, rest


def take_chat(words: Sequence[str]) -> tuple[Spoken, list[str]]:
    """(what is asked of the chat, the other words, which are settings of the run). Raises ConfigError with every problem found."""
    return _take(words, "chat", Chat)


def _take(words: Sequence[str], group: str, settings: type) -> tuple[Spoken, list[str]]:
    found, rest, problems = take_group(words, group, settings)
    if problems:
        raise ConfigError(problems)
    checkpoints = [word for word in rest if word.startswith("checkpoint=")]
    if not checkpoints:
        raise ConfigError("no checkpoint given: add checkpoint=FOLDER, a run, a stage, a step, or imported weights")
    spoken = build(Spoken, {group: found, "checkpoint": checkpoints[-1].removeprefix("checkpoint=")})
    return spoken, [word for word in rest if word not in checkpoints]
