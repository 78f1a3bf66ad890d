"""Repetition inside a long answer, as a failing model or a bad page writes it (Gopher, arXiv:2112.11446, table A1)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.curate.options import limit
from nvlm_train.errors import SampleRefused


@dataclass(frozen=True)
class Repetition:
    """Limits of repetition; answers of fewer words are not looked at: tables and lists repeat themselves, and rightly."""

    repetition_words: int = limit(100, "words from which on an answer is looked at", metavar="N")
    duplicate_lines: float = limit(0.30, "largest share of lines that stood before", metavar="SHARE")
    top_2_gram: float = limit(0.20, "largest share of characters in the most frequent pair of words", metavar="SHARE")
    top_3_gram: float = limit(0.18, "the same of three words", metavar="SHARE")
    top_4_gram: float = limit(0.16, "the same of four words", metavar="SHARE")


def refuse_repetition(text: str, limits: Repetition) -> None:
    """Raises SampleRefused("repetition") with the share found and its limit."""
    words = text.split()
    if len(words) < limits.repetition_words:
        return
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shares = [("of the lines stood before", 1 - len(set(lines)) / len(lines), limits.duplicate_lines)]
    shares += [(f"of the characters are one run of {size} words", top_gram_share(words, size), most)
               for size, most in ((2, limits.top_2_gram), (3, limits.top_3_gram), (4, limits.top_4_gram))]
    for told, share, most in shares:
        if share > most:
            raise SampleRefused("repetition", f"{share:.0%} {told}, the limit is {most:.0%}")


def top_gram_share(words: Sequence[str], size: int) -> float:
    """Characters of the most frequent n-gram, as often as it stands there, over the characters of all words.

    Occurrences that overlap count fully, so text of one repeated word can exceed 1. 0 if no n-gram stands there twice.
    """
    grams = Counter(tuple(words[i:i + size]) for i in range(len(words) - size + 1))
    count, length = max(((count, sum(map(len, gram))) for gram, count in grams.items()), default=(0, 0))
    return count * length / sum(map(len, words)) if count > 1 else 0.0
