"""Conversations to segments: what is text, what is a special token, where pictures stand, and what is learned.

Two formats (paper Figures 11 and 12). `chat` has the turns of a template (`templates`): assistant text, the token that ends it
and what stands behind that are learned, all else is context. `pretrain` has no roles: pictures, instruction, newline, answer, the
ending token, with loss on the last two.
"""

from collections.abc import Iterable, Sequence

from nvlm_train.contracts import IMAGE_PLACEHOLDER, Turn
from nvlm_train.data.templates import CHATML, Picture, Segment, Special, Template, Text
from nvlm_train.errors import SampleRefused

FORMATS = ("chat", "pretrain")
IMAGE_OPEN, IMAGE_CLOSE = "<Image>", "</Image>"
VERSION = 2   # part of the template's fingerprint: raise it whenever the text of a rendered sample, or what is refused, changes

_ROLES = ("system", "user", "assistant")


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


def _render(turns: Sequence[Turn], chat: bool, template: Template) -> Iterable[Segment]:
    yield from template.begin
    picture = 0
    for turn in turns:
        learned = turn.role == "assistant"
        if chat:
            yield from template.opening(turn.role)
        for i, text in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if i:   # the wrapper is never learned, so no supervised token stands next to a picture
                yield from (Text(IMAGE_OPEN), Picture(picture), Text(IMAGE_CLOSE))
                picture += 1
            yield Text(text, learned)
        if chat or learned:
            yield Special(template.end, learned)
        if chat:
            yield Text(template.after, learned)
        elif not learned:
            yield Text("\n")


def _checked(turns: Sequence[Turn], n_images: int, format: str, system_prompt: str | None) -> list[Turn]:
    for turn in turns:
        if turn.role not in _ROLES:
            raise SampleRefused("bad_role", f"role {turn.role!r}; a turn is one of {', '.join(_ROLES)}")
    if format == "pretrain":
        turns = [turn for turn in turns if turn.role != "system"]
    elif system_prompt is not None and not any(turn.role == "system" for turn in turns):
        turns = [Turn("system", system_prompt), *turns]
    return _place_images(turns, n_images, format == "chat")


def render(turns: Sequence[Turn], n_images: int, format: str, system_prompt: str | None = None,
           template: Template = CHATML) -> list[Segment]:
    """Segments of a whole training sample.

    format: "chat" or "pretrain" (which has no roles, and so leaves system turns out). system_prompt: the system turn of a chat
    that has none; None adds nothing. Raises SampleRefused: placeholder_mismatch (both numbers), no_user_turn, bad_role.
    """
    return _merge(_render(_checked(turns, n_images, format, system_prompt), format == "chat", template))


def require_answer(turns: Sequence[Turn]) -> None:
    """Raises SampleRefused("nothing_supervised") unless an assistant turn has text: from its end alone a model learns to be silent."""
    if not any(turn.role == "assistant" and turn.text.replace(IMAGE_PLACEHOLDER, "").strip() for turn in turns):
        raise SampleRefused("nothing_supervised", "no assistant turn with text, so nothing would be learned but when to stop")


def render_prompt(turns: Sequence[Turn], n_images: int, format: str, system_prompt: str | None = None,
                  template: Template = CHATML) -> list[Segment]:
    """Segments of what a model is given before it writes the last assistant turn (whose own text is left out).

    Same arguments and refusals as `render`; every placeholder must stand before the last assistant turn.
    """
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
    prompt = list(_render(_checked(turns[:last], n_images, format, system_prompt), format == "chat", template))
    if format == "chat":
        prompt += template.opening("assistant")
    return _merge(prompt)
