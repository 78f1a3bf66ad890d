"""Text for the study of docs/text_ability.md, from packages alone: what is blended in, and what is asked afterwards.

    puzzles         four families of reasoning_gym, and the same families under other seeds to ask
    documentation   sections of Python's reference, as `pydoc` has them; every fifth is asked, not blended
    other puzzles   three families that are never blended
    prose           a story (In the Year 2889, as reasoning_gym ships it), never blended
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pydoc_data.topics import topics

from nvlm_train.contracts import Sample, Turn

BLENDED = {
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2, "operators": ["+", "-"]},
    "letter_counting": {"min_words": 3, "max_words": 6},
    "spell_backward": {"min_word_len": 3, "max_word_len": 6},
    "gcd": {"max_numbers": 2, "max_value": 100},
}
UNSEEN: dict[str, dict] = {"leg_counting": {"max_animals": 3}, "lcm": {"max_numbers": 2, "max_value": 60}, "gsm_symbolic": {}}
TRAIN_SEED, TEST_SEED = 7, 1_000_003
OPTIONS = 4         # answers to choose from, the right one included
_LETTERS = 420      # of a passage: some hundred tokens


@dataclass(frozen=True)
class Choice:
    """A question with the right answer first, then wrong ones: right answers of other questions of its family."""

    samples: tuple[Sample, ...]


def training(puzzles: int) -> Iterator[Sample]:
    """The text that is blended in: `puzzles` puzzles, and the documentation."""
    asked = {choice.samples[0].turns[0].text for choice in puzzle_choices(BLENDED, 1000)}
    drawn = [sample for sample in _puzzles(BLENDED, puzzles, TRAIN_SEED) if sample.turns[0].text not in asked]
    together = [*drawn, *documentation(test=False)]
    random.Random(TRAIN_SEED).shuffle(together)
    yield from together


def puzzle_choices(families: dict[str, dict], count: int) -> list[Choice]:
    """`count` questions, evenly over the families, each with `OPTIONS` answers."""
    asked = list(_puzzles(families, count, TEST_SEED))
    pool: dict[str, list[str]] = {}
    for sample in asked:
        pool.setdefault(sample.meta["task"], []).append(sample.turns[1].text)
    return [_with_wrong(sample, sorted(set(pool[sample.meta["task"]]))) for sample in asked]


def documentation(test: bool) -> list[Sample]:
    """Passages of Python's reference; those of every fifth topic are the test."""
    chosen = [name for number, name in enumerate(sorted(topics)) if (number % 5 == 0) == test]
    return [_passage("documentation", f"{'test' if test else 'train'}-{name}-{part}", f"Explain this part of Python: {name}", text)
            for name in chosen for part, text in enumerate(_passages(topics[name]))]


def prose() -> list[Sample]:
    """Passages of a story, each after a request to tell it."""
    text = (files("reasoning_gym") / "data" / "in_the_year_2889.txt").read_text(encoding="utf-8")
    story = text.partition("*** START")[2].partition("***")[2].partition("*** END")[0]
    return [_passage("prose", f"story-{part}", "Go on with the story.", passage) for part, passage in enumerate(_passages(story))]


def spread(samples: Sequence, count: int) -> list:
    """At most `count` of them, evenly over all."""
    wanted = min(count, len(samples))
    return [samples[i * len(samples) // wanted] for i in range(wanted)]


def _puzzles(families: dict[str, dict], count: int, seed: int) -> Iterator[Sample]:
    import reasoning_gym

    share = -(-count // len(families))
    for family, settings in families.items():
        for number, entry in enumerate(reasoning_gym.create_dataset(family, seed=seed, size=share, **settings)):
            yield Sample(f"{family}-{seed}-{number}", "puzzles", (),
                         (Turn("user", entry["question"].strip()), Turn("assistant", str(entry["answer"]))), {"task": family})


def _with_wrong(sample: Sample, answers: Sequence[str]) -> Choice:
    right = sample.turns[1].text
    wrong = random.Random(sample.key).sample([answer for answer in answers if answer != right], OPTIONS - 1)
    return Choice(tuple(Sample(f"{sample.key}-{number}", sample.source, (), (sample.turns[0], Turn("assistant", answer)), sample.meta)
                        for number, answer in enumerate((right, *wrong))))


def _passages(text: str) -> list[str]:
    """Whole paragraphs together, up to about `_LETTERS` letters; what is shorter than half of that is left out."""
    found, now = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        if now and len(now) + len(paragraph) > _LETTERS:
            found.append(now[:_LETTERS])
            now = ""
        now = f"{now}\n{paragraph}".strip()
    return [passage for passage in [*found, now[:_LETTERS]] if len(passage) > _LETTERS // 2]


def _passage(source: str, key: str, request: str, text: str) -> Sample:
    return Sample(key.replace(".", "_"), source, (), (Turn("user", request), Turn("assistant", text)), {"task": source})
