"""Questions that the package reasoning-gym makes from a seed: the same ones for everybody who has the same version of it."""

from collections.abc import Iterable, Mapping

from nvlm_train.config.benchmark import Generated
from nvlm_train.errors import ConfigError
from nvlm_train.evaluation.readers.records import Listed

TRIES = 4       # questions made for each that is wanted, at most: small numbers repeat


def reasoning_gym(asked: Generated | None, benchmark: str) -> Listed:
    """Records of question, answer, task, no question twice; `_name` is TASK/NUMBER. The package is imported: its questions are code's.

    Raises ConfigError: the recipe says nothing to make, or names a task or a setting that the package has not, or one that has too few
    different questions.
    """
    if asked is None:
        raise ConfigError(f"eval={benchmark}: the reader reasoning_gym needs `generated`: seed, size and tasks")
    import reasoning_gym as gym

    records = []
    for task, settings in asked.tasks.items():
        try:
            made = gym.create_dataset(task, seed=asked.seed, size=TRIES * asked.size, **settings)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"eval={benchmark}: reasoning-gym cannot make {task!r} of {settings}: {error}") from error
        different = _different(made, asked.size)
        if len(different) < asked.size:
            raise ConfigError(f"eval={benchmark}: {task} with {settings} has {len(different)} different questions among "
                              f"{TRIES * asked.size}, and {asked.size} are asked for")
        records += [{"question": question, "answer": answer, "task": task, "_name": f"{task}/{number}"}
                    for number, (question, answer) in enumerate(different.items())]
    return Listed(f"reasoning-gym, seed {asked.seed}", records)


def _different(made: Iterable[Mapping], size: int) -> dict[str, str]:
    """Question -> answer of the first `size` different questions. Each is made when it is reached."""
    found: dict[str, str] = {}
    for entry in made:
        if len(found) == size:
            break
        found.setdefault(entry["question"].strip(), str(entry["answer"]))
    return found
