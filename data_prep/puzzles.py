"""Text-only questions with exact answers, from the package `reasoning_gym`: sums that a tiny language model can learn.

Its generators are seeded. A sum that occurs in the test split is left out of training.
"""

import random
import re

Puzzle = tuple[str, str, str]   # task, question, answer

TASKS = {
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2, "operators": ["+", "-"],
                         "allow_parentheses": False},
}
TEST_SEED = 1_000_003
_SUM = re.compile(r"\d+ [+-] \d+")


def test(count: int, seed: int) -> list[Puzzle]:
    """`count` questions, no sum twice."""
    found: dict[str, Puzzle] = {}
    for puzzle in _generate(4 * count, TEST_SEED + seed):
        found.setdefault(sum_in(puzzle[1]), puzzle)
    return list(found.values())[:count]


def training(count: int, test_count: int, seed: int) -> list[Puzzle]:
    """`count` questions, none of them about a sum among the `test_count` of the test split; questions may repeat."""
    held_out = {sum_in(question) for _, question, _ in test(test_count, seed)}
    fresh = [puzzle for puzzle in _generate(2 * count, seed) if sum_in(puzzle[1]) not in held_out]
    return fresh[:count]


def sum_in(question: str) -> str:
    """The sum a question is about: `12 + 7`."""
    return _SUM.search(question)[0]


def _generate(count: int, seed: int) -> list[Puzzle]:
    """`count` questions, evenly over the tasks, in random order."""
    import reasoning_gym

    puzzles = []
    for task, settings in TASKS.items():
        dataset = reasoning_gym.create_dataset(task, seed=seed, size=-(-count // len(TASKS)), **settings)
        puzzles += [(task, entry["question"], str(entry["answer"])) for entry in dataset]
    random.Random(seed).shuffle(puzzles)
    return puzzles[:count]
