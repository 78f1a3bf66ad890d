"""What `eval` and `generate` are asked beside the run's settings: a checkpoint, pictures, a question. Not part of a run.

These keys are read literally, so a question needs no quotes beyond the shell's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nvlm_train.config.typed import build, key_paths, suggestion
from nvlm_train.errors import ConfigError


@dataclass(frozen=True)
class Eval:
    data: str | None = None     # folder of shards to evaluate on; default: the run's data.validation
    limit: int = 0              # questions of each source; 0: all
    max_new_tokens: int = 64    # longest answer


@dataclass(frozen=True)
class Request:
    checkpoint: str | None = None       # a run, a stage or a step folder
    image: tuple[str, ...] = ()         # picture files, in the order of the question; image= may be given several times
    prompt: str | None = None
    eval: Eval = field(default_factory=Eval)

    def options(self, **more) -> dict:
        """Flat, as the commands take them."""
        return {"checkpoint": self.checkpoint, "image": list(self.image), "prompt": self.prompt, **vars(self.eval), **more}


def take_request(overrides: Sequence[str]) -> tuple[Request, list[str]]:
    """(the request in `key=value` words, the words that are not part of it). Raises ConfigError for unknown eval.… keys."""
    tree: dict = {"image": []}
    options: dict = {}
    rest, problems = [], []
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals:
            rest.append(word)
        elif key == "image":
            tree["image"].append(value)
        elif key in ("checkpoint", "prompt"):
            tree[key] = value
        elif key.startswith("eval."):
            name = key.removeprefix("eval.")
            if name not in key_paths(Eval):
                problems.append(f"{key}: unknown key{suggestion(name, list(key_paths(Eval)), 'eval.')}")
            options[name] = value if name == "data" else _number(key, value)
        else:
            rest.append(word)
    if problems:
        raise ConfigError(problems)
    request = build(Request, {**tree, "eval": options})
    if request.eval.limit < 0 or request.eval.max_new_tokens < 1:
        raise ConfigError(f"eval.limit={request.eval.limit} must be at least 0 and eval.max_new_tokens="
                          f"{request.eval.max_new_tokens} at least 1")
    return request, rest


def _number(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{key}: expected a whole number, got {text!r}") from error
