"""The body of a chat completion: what is honoured, what is refused since it would change the answer, what means nothing here."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvlm_train.config.serving import Serve
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import DataError
from nvlm_train.generation.request import Sampling
from nvlm_train.serving.messages import Message, encodable, read_messages
from nvlm_train.serving.problems import Refusal

MAX_STOPS = 4
MAX_STOP = 256      # characters of a stop string
MAX_TEMPERATURE = 2.0
_HUGE = 1e300
HONOURED = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream",
            "stream_options", "n", "nvlm")
# They change nothing of what is answered.
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
                     "prompt_cache_retention", "parallel_tool_calls"})
# Values of other parameters that ask for nothing. What asks for something is refused: an answer without it would be another.
_NOTHING: Mapping[str, tuple] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},), "logprobs": (False,),
    "top_logprobs": (0,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "best_of": (1,), "echo": (False,), "top_k": (-1, 0),
    "min_p": (0,), "audio": (), "prediction": (), "reasoning_effort": (), "verbosity": (), "web_search_options": (),
}


@dataclass(frozen=True)
class Asked:
    """A chat completion as asked. max_new_tokens None: as long as there is room. seed: given, else drawn.

    tiles: our own extension, the tiles of the pictures are wanted too.
    """

    messages: list[Message]
    max_new_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    tiles: bool

    def sampling(self, longest: int) -> Sampling:
        """How at most `longest` tokens are drawn."""
        return Sampling(longest, self.temperature, self.top_p, self.seed)


def read_asked(body: bytes, limits: Serve, model: str) -> Asked:
    """Raises Refusal for whatever is not understood or cannot be done."""
    tree = _json(body)
    if not isinstance(tree, dict):
        raise Refusal("the body must be a JSON object with model and messages")
    tree = {key: value for key, value in tree.items() if value is not None}
    _refuse_others(tree)
    if tree.get("model", model) != model:
        raise Refusal(f"the model {str(tree['model'])[:80]!r} does not exist; this server has {model!r}", "model",
                      "model_not_found", 404)
    if _whole(tree, "n", 1) != 1:
        raise Refusal("n must be 1: this server gives one answer to a request", "n", "unsupported_parameter")
    sampling = _numbers(tree, limits)
    stream = _flag(tree, "stream", "stream")
    options = _group(tree, "stream_options", ("include_usage", "include_obfuscation"))
    if options and not stream:
        raise Refusal("stream_options is for stream: true", "stream_options")
    return Asked(
        messages=read_messages(tree.get("messages"), limits.max_images),
        **sampling, stops=_stops(tree.get("stop")), stream=stream,
        usage=_flag(options, "include_usage", "stream_options.include_usage"),
        tiles=_flag(_group(tree, "nvlm", ("tiles",)), "tiles", "nvlm.tiles"))


def _json(body: bytes) -> Any:
    """Strict: Python's own reader also takes NaN and Infinity, which are no JSON."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except RecursionError as error:
        raise Refusal("the body is nested too deeply") from error
    except ValueError as error:     # not UTF-8, not JSON, a number of thousands of digits
        raise Refusal(f"the body is not JSON: {str(error)[:120]}") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _refuse_others(tree: Mapping) -> None:
    for key, value in tree.items():
        if key in HONOURED or key in IGNORED:
            continue
        if key not in _NOTHING:
            near = suggestion(key[:80], [*HONOURED, *_NOTHING])
            raise Refusal(f"{key[:80]} is unknown{near}", key[:80], "unknown_parameter")
        if not any(type(value) in (type(nothing), *((float,) if type(nothing) is int else ())) and value == nothing
                   for nothing in _NOTHING[key]):
            raise Refusal(f"{key} is not supported, and leaving it out would change the answer: ask without it", key,
                          "unsupported_parameter")


def _numbers(tree: Mapping, limits: Serve) -> dict:
    """max_new_tokens, temperature, top_p and seed."""
    longest = {key: _whole(tree, key) for key in ("max_completion_tokens", "max_tokens") if key in tree}
    if len(set(longest.values())) > 1:
        raise Refusal("max_tokens and max_completion_tokens mean the same, and differ", "max_tokens")
    for key, value in longest.items():
        if not 1 <= value <= limits.max_new_tokens:
            raise Refusal(f"{key} is {str(value)[:20]}; this server writes 1 to {limits.max_new_tokens} tokens "
                          "(serve.max_new_tokens)", key)
    numbers = {"temperature": _number(tree, "temperature", 0.0), "top_p": _number(tree, "top_p", 1.0)}
    if not 0 <= numbers["temperature"] <= MAX_TEMPERATURE:
        raise Refusal(f"temperature is {numbers['temperature']:g}; it lies between 0 and {MAX_TEMPERATURE:g}", "temperature")
    seed = _whole(tree, "seed") if "seed" in tree else secrets.randbelow(2**53)     # which every JSON reader keeps whole
    try:
        Sampling(1, **numbers, seed=seed)
    except DataError as error:
        raise Refusal(str(error)[:200], str(error).split()[0]) from error
    return {"max_new_tokens": next(iter(longest.values()), None), **numbers, "seed": seed}


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP for stop in stops):
        raise Refusal(f"stop must be text or a list of texts, each of 1 to {MAX_STOP} characters", "stop")
    if len(stops) > MAX_STOPS:
        raise Refusal(f"stop has {len(stops)} strings, at most {MAX_STOPS} are taken", "stop")
    return tuple(encodable(stop, "stop") for stop in stops)


def _group(tree: Mapping, key: str, known: tuple[str, ...]) -> Mapping:
    value = tree.get(key, {})
    if not isinstance(value, dict) or set(value) - set(known):
        raise Refusal(f"{key} must be an object with {', '.join(known)}", key)
    return value


def _flag(tree: Mapping, key: str, where: str) -> bool:
    value = tree.get(key)
    return False if value is None else _typed(value, (bool,), where, "true or false")


def _whole(tree: Mapping, key: str, default: int | None = None) -> int:
    return _typed(tree.get(key, default), (int,), key, "a whole number")


def _number(tree: Mapping, key: str, default: float) -> float:
    value = _typed(tree.get(key, default), (int, float), key, "a number")
    if not abs(value) <= _HUGE:     # 1e999 is JSON
        raise Refusal(f"{key} is beyond all measure", key)
    return float(value)


def _typed(value: Any, kinds: tuple[type, ...], where: str, expected: str) -> Any:
    if type(value) not in kinds:
        raise Refusal(f"{where} must be {expected}, got {repr(value)[:80]}", where)
    return value
