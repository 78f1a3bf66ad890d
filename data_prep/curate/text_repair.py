"""Damaged encodings of text, undone: mojibake, lone control characters, decomposed accents. What was right stays as it is."""

import re
import unicodedata
from functools import lru_cache
from typing import Any

from data_prep.curate.extra import package

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)     # fenced blocks and inline code, delimiters included


def repair(text: str) -> str:
    """The text in NFC, with what ftfy can tell to be damage undone. Code between backticks is returned as it is.

    Quotes, ligatures, full-width letters and HTML entities stay: a page about HTML, or a transcript, means them.
    Raises DataError: ftfy is not installed.
    """
    return "".join(part if number % 2 else _repair_prose(part) for number, part in enumerate(_CODE.split(text)))


def _repair_prose(text: str) -> str:
    if text.isascii() and text.isprintable():   # nothing to find; most text
        return text
    ftfy = package("ftfy", "the repair of text (--no-text-repair leaves it out)")
    return unicodedata.normalize("NFC", ftfy.fix_text(text, _settings()))


@lru_cache(maxsize=1)
def _settings() -> Any:
    ftfy = package("ftfy", "the repair of text")
    return ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False,
                                normalization="NFC", explain=False)
