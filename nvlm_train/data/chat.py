"""Conversations to segments: what is text, what is a special token, where pictures stand, and what is learned.

Two formats (paper Figures 11 and 12). `chat` is ChatML: assistant text, its `<|im_end|>` and the newline after it are learned,
all else is context. `pretrain` has no roles: pictures, instruction, newline, answer, `<|im_end|>`, with loss on the last two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nvlm_train.contracts import IMAGE_PLACEHOLDER, Turn
from nvlm_train.data.tokenizer import END, START
from nvlm_train.errors import SampleRefused

FORMATS = ("chat", "pretrain")
IMAGE_OPEN, IMAGE_CLOSE = "<Image>", "</Image>"
VERSION = 2   # part of the template's fingerprint: raise it whenever the text of a rendered sample, or what is refused, changes

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Text:
    """Plain text, tokenised by itself."""

    text: str
    learned: bool = False


@dataclass(frozen=True)
class Special:
    """One special token, by name."""

    token: str
    learned: bool = False


@dataclass(frozen=True)
class Picture:
    """The place of one picture's tiles and tags; `index` counts the sample's pictures."""

    index: int


Segment = Text | Special | Picture


def _place_images(turns: Sequence[Turn], n_images: int, chat: bool) -> list[Turn]:
    """Make every picture have a placeholder. Pictures without one go to the start of the first user turn, a line each."""
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if placeholders == n_images:
        return list(turns)
    if placeholders:
        raise SampleRefused("placeholder_mismatch", f"{placeholders} {IMAGE_PLACEHOLDER} in the text, {n_images} images")
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is not None:
        head = f"{IMAGE_PLACEHOLDER}\n" * n_images
        return [Turn("user", head + turn.text) if i == first else turn for i, turn in enumerate(turns)]
    if chat:
        raise SampleRefused("no_user_turn", f"{n_images} images, and no user turn to put them in")
    return [Turn("user", "\n".join([IMAGE_PLACEHOLDER] * n_images)), *turns]


def _merge(segments: Iterable[Segment]) -> list[Segment]:
    """Join neighbouring texts of the same supervision, so that they are tokenised together as one string would be."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text):
            if not segment.text:
                continue
            last = merged[-1] if merged else None
            if isinstance(last, Text) and last.learned == segment.learned:
                merged[-1] = Text(last.text + segment.text, segment.learned)
                continue
        merged.append(segment)
    return merged


def _render(turns: Sequence[Turn], chat: bool) -> Iterable[Segment]:
    picture = 0
    for turn in turns:
        learned = turn.role == "assistant"
        if chat:
            yield Special(START)
            yield Text(turn.role + "\n")
        for i, text in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if i:   # the wrapper is never learned, so no supervised token stands next to a picture
                yield from (Text(IMAGE_OPEN), Picture(picture), Text(IMAGE_CLOSE))
                picture += 1
            yield Text(text, learned)
        if chat or learned:
            yield Special(END, learned)
        if chat or not learned:
            yield Text("\n", learned)


def _checked(turns: Sequence[Turn], n_images: int, format: str, system_prompt: str | None) -> list[Turn]:
    for turn in turns:
        if turn.role not in _ROLES:
            raise SampleRefused("bad_role", f"role {turn.role!r}; a turn is one of {', '.join(_ROLES)}")
    if format == "pretrain":
        turns = [turn for turn in turns if turn.role != "system"]
    elif system_prompt is not None and not any(turn.role == "system" for turn in turns):
        turns = [Turn("system", system_prompt), *turns]
    return _place_images(turns, n_images, format == "chat")


def render(turns: Sequence[Turn], n_images: int, format: str, system_prompt: str | None = None) -> list[Segment]:
    """Segments of a whole training sample.

    format: "chat" or "pretrain" (which has no roles, and so leaves system turns out). system_prompt: the system turn of a chat
    that has none; None adds nothing. Raises SampleRefused: placeholder_mismatch (both numbers), no_user_turn, bad_role.
    """
    return _merge(_render(_checked(turns, n_images, format, system_prompt), format == "chat"))


def require_answer(turns: Sequence[Turn]) -> None:
    """Raises SampleRefused("nothing_supervised") unless an assistant turn has text: from its end alone a model learns to be silent."""
    if not any(turn.role == "assistant" and turn.text.replace(IMAGE_PLACEHOLDER, "").strip() for turn in turns):
        raise SampleRefused("nothing_supervised", "no assistant turn with text, so nothing would be learned but when to stop")


def render_prompt(turns: Sequence[Turn], n_images: int, format: str, system_prompt: str | None = None) -> list[Segment]:
    """Segments of what a model is given before it writes the last assistant turn (whose own text is left out).

    Same arguments and refusals as `render`; every placeholder must stand before the last assistant turn.
    """
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
    prompt = list(_render(_checked(turns[:last], n_images, format, system_prompt), format == "chat"))
    if format == "chat":
        prompt += [Special(START), Text("assistant\n")]
    return _merge(prompt)
