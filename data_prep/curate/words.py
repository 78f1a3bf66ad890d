"""Text as it is compared: case, spacing and sentence punctuation do not count, operators and LaTeX do."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from nvlm_train.contracts import IMAGE_PLACEHOLDER, Sample

# A word; one character of a script that puts no spaces between words; or one sign.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|(?:(?![\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])\w)+|[^\w\s]")
_MEANT = frozenset("-/\\*%&#@_")     # punctuation to Unicode, and yet a part of sums, formulas and names, as + = < ^ are


def words_of(text: str) -> list[str]:
    """Words of a text after NFC and case folding, without placeholders and punctuation."""
    folded = unicodedata.normalize("NFC", text.replace(IMAGE_PLACEHOLDER, " ")).casefold()
    return [word for word in _WORDS.findall(folded) if not _is_punctuation(word)]


def _is_punctuation(word: str) -> bool:
    return len(word) == 1 and word not in _MEANT and unicodedata.category(word).startswith("P")


def sample_words(sample: Sample) -> list[str]:
    """Words of all that was asked and answered; system prompts are shared by whole datasets and say nothing about a sample."""
    return [word for turn in sample.turns if turn.role != "system" for word in words_of(turn.text)]


def answer_length(sample: Sample) -> int:
    """Characters of all assistant turns."""
    return sum(len(turn.text) for turn in sample.turns if turn.role == "assistant")


def gram_hashes(words: Sequence[str], size: int) -> np.ndarray:
    """64-bit hashes of every run of `size` words, in order: uint64 [len(words) - size + 1], empty if there are fewer words."""
    return np.array([_hash(" ".join(words[i:i + size])) for i in range(len(words) - size + 1)], dtype=np.uint64)


def shingles(words: Sequence[str], size: int) -> np.ndarray:
    """The set of hashes of word n-grams, uint64, ascending; a text of fewer than `size` words is one gram. Empty without words."""
    return np.unique(gram_hashes(words, min(size, max(len(words), 1))))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared elements over all elements of two ascending sets, 0 to 1. Two empty sets are alike."""
    if not len(a) and not len(b):
        return 1.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
