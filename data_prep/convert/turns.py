"""Conversations: roles, and the place of every picture. What comes out is what training expects of a sample."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.convert.fields import lookup, text
from nvlm_train.contracts import IMAGE_PLACEHOLDER, Turn
from nvlm_train.errors import SampleRefused

ROLES = {"system": "system", "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
         "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""What public datasets call the three roles."""

_NUMBERED = re.compile(r"<image[-_ ]?(\d+)>", re.IGNORECASE)


def exchange(pairs: Sequence[tuple[str, str]]) -> list[Turn]:
    """User and assistant turns of questions and answers."""
    return [Turn(role, said) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=True)]


def place_images(turns: Sequence[Turn], images: int) -> tuple[tuple[Turn, ...], tuple[int, ...]]:
    """Give every picture its `<image>`. Returns the turns, and the pictures' order of appearance (numbers from 0).

    `<image>` stays where it stands. `<image-2>`, `<image_2>`, `<image 2>` mean the second picture. Without any, all pictures come before
    the first user turn's text, a line each. Raises SampleRefused: placeholder_mismatch (both numbers), placeholder_in_answer (a
    picture cannot stand in what is learned), no_user_turn.
    """
    named = [int(number) for turn in turns for number in _NUMBERED.findall(turn.text)] if images else []
    plain = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if (plain or named) and any(turn.role != "user" and (IMAGE_PLACEHOLDER in turn.text or (named and _NUMBERED.search(turn.text)))
                                for turn in turns):
        raise SampleRefused("placeholder_in_answer", f"{IMAGE_PLACEHOLDER} outside the user's turns")
    if not plain and not named:
        return _in_front(turns, images), tuple(range(images))
    if named:
        if plain or sorted(named) != list(range(1, images + 1)):
            raise SampleRefused("placeholder_mismatch", f"the text names pictures {named[:10]} and {plain} more, there are {images} images")
        return tuple(Turn(turn.role, _NUMBERED.sub(IMAGE_PLACEHOLDER, turn.text)) for turn in turns), tuple(n - 1 for n in named)
    if plain != images:
        raise SampleRefused("placeholder_mismatch", f"{plain} {IMAGE_PLACEHOLDER} in the text, {images} images")
    return tuple(turns), tuple(range(images))


def _in_front(turns: Sequence[Turn], images: int) -> tuple[Turn, ...]:
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if images and first is None:
        raise SampleRefused("no_user_turn", f"{images} images, and no user turn to put them in")
    head = f"{IMAGE_PLACEHOLDER}\n" * images
    return tuple(Turn(turn.role, head + turn.text) if place == first else turn for place, turn in enumerate(turns))


def conversation(messages: Any, role: str, content: str) -> list[Turn]:
    """Turns of a list of {role, content} objects, under whatever names: a system turn first if any, then user and assistant in turn.

    Raises SampleRefused: bad_field, bad_role, empty_text, roles_out_of_order, last_not_assistant.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise SampleRefused("bad_field", f"a conversation is a list of turns, found {str(messages)[:80]!r}")
    turns = []
    for place, message in enumerate(messages):
        who = str(lookup(message, role, "")).lower()
        if who not in ROLES:
            raise SampleRefused("bad_role", f"turn {place + 1} is by {who[:40]!r}; known are {', '.join(ROLES)}")
        said = joined(lookup(message, content))
        if ROLES[who] != "system" or said:      # an empty system turn says nothing; any other empty turn is a loss
            turns.append(Turn(ROLES[who], text(said, f"turn {place + 1}")))
    check_order(turns)
    return turns


def joined(content: Any) -> Any:
    """Content given in parts, [{"type": "text", "text": …}, {"type": "image"}], as one text with placeholders."""
    if not isinstance(content, (list, tuple)):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url"):
            parts.append(IMAGE_PLACEHOLDER)
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            raise SampleRefused("bad_field", f"a part of a turn is neither text nor image: {str(part)[:80]}")
    return "\n".join(parts)


def check_order(turns: Sequence[Turn]) -> None:
    """Raises SampleRefused: roles_out_of_order, last_not_assistant."""
    said = [turn.role for turn in turns[1 if turns and turns[0].role == "system" else 0:]]
    if not said or said[-1] != "assistant":
        raise SampleRefused("last_not_assistant", f"the turns are by: {', '.join(said)[-120:] or 'nobody but the system'}")
    if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(said)):
        raise SampleRefused("roles_out_of_order", f"user and assistant do not take turns: {', '.join(said)[:120]}")
