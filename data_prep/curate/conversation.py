"""Conversations: roles in order, nothing empty, a placeholder for every picture, and no text that pretends to be structure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_prep.curate.options import limit
from data_prep.curate.text_repair import repair
from nvlm_train.config.schema import Tags
from nvlm_train.contracts import IMAGE_PLACEHOLDER, Turn
from nvlm_train.data.chat import IMAGE_CLOSE, IMAGE_OPEN
from nvlm_train.errors import SampleRefused

# Control tokens are safe where text is tokenised as text, and still teach a model to write them; tags are text in training too,
# and would pretend to announce tiles (nvlm_train/data/tags.py).
_FORGED = re.compile(rf"<\|[A-Za-z0-9_]+\|>|<tile_(?:\d+|x\d+_y\d+|global)>|<{Tags().global_name}>|{IMAGE_OPEN}|{IMAGE_CLOSE}")


@dataclass(frozen=True)
class Text:
    """Limits of a conversation. Markup that looks like structure of ours is always refused."""

    text_repair: bool = limit(True, "leave text as it is (NFC and ftfy repair it otherwise; never inside backticks)")
    max_turns: int = limit(64, "most turns", metavar="N")
    max_characters: int = limit(100_000, "most characters of all turns", metavar="N")
    min_answer: int = limit(1, "fewest characters of the longest answer", metavar="N")


def check_turns(turns: Sequence[Turn], images: int, limits: Text) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """The turns as they go on, and their repairs (`text_repaired`).

    A sample may name all its pictures by placeholders or none; training puts the latter first. Raises SampleRefused: bad_roles,
    no_answer, empty_turn, too_many_turns, long_text, short_answer, placeholder_mismatch, special_token.
    """
    _refuse_order([turn.role for turn in turns])
    if len(turns) > limits.max_turns:
        raise SampleRefused("too_many_turns", f"{len(turns)} turns, the limit is {limits.max_turns}")
    _refuse_length(turns, limits)
    repaired = tuple(replace(turn, text=repair(turn.text)) for turn in turns) if limits.text_repair else tuple(turns)
    _refuse_text(repaired, images, limits)
    return repaired, ("text_repaired",) if repaired != tuple(turns) else ()


def _refuse_order(roles: Sequence[str]) -> None:
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken[-1] != "assistant":
        raise SampleRefused("no_answer", f"the last turn is of {roles[-1] if roles else 'nobody'}, an answer is by assistant")
    for number, role in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise SampleRefused("bad_roles", f"turn {number + 1} after the system prompt is of {role!r}, expected {expected!r}")


def _refuse_length(turns: Sequence[Turn], limits: Text) -> None:
    characters = sum(len(turn.text) for turn in turns)
    if characters > limits.max_characters:
        raise SampleRefused("long_text", f"{characters:,} characters, the limit is {limits.max_characters:,}")
    answer = max(len(turn.text.strip()) for turn in turns if turn.role == "assistant")
    if 0 < answer < limits.min_answer:
        raise SampleRefused("short_answer", f"{answer} characters in the longest answer, at least {limits.min_answer} are asked")


def _refuse_text(turns: Sequence[Turn], images: int, limits: Text) -> None:
    for number, turn in enumerate(turns):
        bare = turn.text.replace(IMAGE_PLACEHOLDER, "")
        if not bare.strip() and not (turn.role == "user" and images):     # a picture alone may be the question
            raise SampleRefused("empty_turn", f"turn {number + 1}, of {turn.role}, has no text")
        if forged := _FORGED.search(bare):
            raise SampleRefused("special_token", f"turn {number + 1}, of {turn.role}, holds {forged[0]!r}")
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if placeholders not in (0, images):
        raise SampleRefused("placeholder_mismatch", f"{placeholders} {IMAGE_PLACEHOLDER} in the text, {images} images")
