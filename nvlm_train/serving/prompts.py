"""A conversation to what the model is given. Whatever its texts hold stays text; pictures come from picture parts alone."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nvlm_train.config.request import LONGEST
from nvlm_train.config.serving import Serve
from nvlm_train.contracts import IMAGE_PLACEHOLDER, EncodedSample, Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.data.images import image_size
from nvlm_train.errors import SampleRefused
from nvlm_train.evaluation.benchmark.questions import without_placeholders
from nvlm_train.serving.asked import Asked
from nvlm_train.serving.messages import Message, texts_of
from nvlm_train.serving.problems import Refusal
from nvlm_train.serving.tiles import tiles_shown

MOST_LETTERS = 64       # characters of a token, on average, beyond which a text is refused untokenised: English has four


@dataclass(frozen=True)
class Prompt:
    """prepare_s: seconds that decoding, cutting and tokenising took. tiles: as `tiles.tiles_shown` makes them, if they are wanted."""

    encoded: EncodedSample
    max_new_tokens: int
    prepare_s: float
    tiles: list[dict] | None


def prepare(asked: Asked, encoder: Encoder, limits: Serve, key: str) -> Prompt:
    """Decode and encode a request's conversation. Raises Refusal: a picture cannot be read or is too large, a prompt too long."""
    began = time.monotonic()
    longest = min(limits.max_prompt_tokens or encoder.max_tokens, encoder.max_tokens)
    if (letters := texts_of(asked.messages)) > longest * MOST_LETTERS:
        raise _too_long(f"{letters:,} characters of text, and a prompt has at most {longest:,} tokens")
    sample = sample_of(asked.messages, key)
    if encoder.data.format == "pretrain" and any(message.role == "system" for message in asked.messages):
        raise Refusal("this checkpoint is of a stage without roles (data.format=pretrain): it takes no system message", "messages")
    # Without max_tokens some room is kept free, and the answer may grow into whatever the prompt leaves.
    reserve = asked.max_new_tokens or min(limits.max_new_tokens, LONGEST, encoder.max_tokens // 4)
    try:
        _check_sizes(sample, limits.max_pixels)
        encoded = encoder.encode_prompt(sample, reserve=reserve)
    except SampleRefused as error:
        if error.reason == "too_long":
            raise _too_long(error.detail) from error
        raise Refusal(f"{error.reason}: {error.detail}", "messages", error.reason) from error
    if encoded.length > longest:
        raise _too_long(f"{encoded.length:,} tokens with its pictures, and this server takes {longest:,} (serve.max_prompt_tokens)")
    room = asked.max_new_tokens or min(limits.max_new_tokens, encoder.max_tokens - encoded.length)
    prepare_s = time.monotonic() - began
    return Prompt(encoded, room, prepare_s, tiles_shown(sample, encoded, encoder) if asked.tiles else None)


def sample_of(messages: Sequence[Message], key: str) -> Sample:
    """The conversation, with an empty answer at its end."""
    images = tuple(part for message in messages for part in message.parts if isinstance(part, bytes))
    turns = [Turn(message.role, _text(message.parts)) for message in messages]
    return Sample(key, "serving", images, (*turns, Turn("assistant", "")))


def _text(parts: Sequence[str | bytes]) -> str:
    """The parts, a line each. Pictures that follow all text are put before it: there the model has learned to expect them."""
    last = max((at for at, part in enumerate(parts) if isinstance(part, str)), default=-1)
    ordered = [*parts[last + 1:], *parts[:last + 1]]
    return "\n".join(IMAGE_PLACEHOLDER if isinstance(part, bytes) else without_placeholders(part) for part in ordered)


def _check_sizes(sample: Sample, max_pixels: int) -> None:
    for image in sample.images:
        width, height = image_size(image)
        if width * height > max_pixels:
            raise SampleRefused("image_too_large", f"{width}x{height} is {width * height:,} pixels, this server takes {max_pixels:,} "
                                                   "(serve.max_pixels)")


def _too_long(detail: str) -> Refusal:
    return Refusal(f"the prompt is too long: {detail}", "messages", "context_length_exceeded")
