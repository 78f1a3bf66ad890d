"""What is compared: designs, each a list of settings, and the trainings (design x seed) that it takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.config.compose import compose
from nvlm_train.config.request import Comparison
from nvlm_train.config.schema import Run
from nvlm_train.errors import ConfigError

# Features may be cached for one design and not for another, which would be quicker for it.
OWN_WORK = "data.features=off"


@dataclass(frozen=True)
class Design:
    """One column of the comparison. words: all its settings, those shared with the others first; runs: its stages, resolved."""

    name: str
    words: tuple[str, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Job:
    """One training: a design under a seed, in a run directory of its own."""

    design: Design
    seed: int
    folder: Path
    words: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return f"{self.design.name}, seed {self.seed}"


def designs_of(asked: Comparison, shared: Sequence[str]) -> list[Design]:
    """Every design, resolved. Raises ConfigError with the problems of all of them, each under its design's name."""
    found, problems = [], []
    for name, own in asked.designs.items():
        words = (OWN_WORK, *shared, *own)
        try:
            found.append(Design(name, words, tuple(compose(words))))
        except ConfigError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return found


def jobs_of(designs: Sequence[Design], seeds: Sequence[int], root: Path) -> list[Job]:
    """All trainings, a whole round of designs for one seed after the other: what is finished first can be compared first."""
    jobs = []
    for seed in seeds or [designs[0].runs[0].train.seed]:
        for design in designs:
            folder = root / design.name / f"seed-{seed}"
            words = (*design.words, f"train.seed={seed}", f"run.dir={folder}")
            jobs.append(Job(design, seed, folder, words, tuple(compose(words))))
    return jobs


def processes_of(designs: Sequence[Design], wanted: int | None) -> int:
    """How many processes each training gets, the same for all so that speeds can be compared. Raises ConfigError."""
    layouts = [run.layout for design in designs for run in design.runs]
    fewest = math.lcm(*(layout.tensor * layout.pipeline * layout.context for layout in layouts))
    if wanted is not None and wanted % fewest:
        raise ConfigError(f"processes={wanted} does not suit the layouts of all designs: take a multiple of {fewest}")
    return wanted or fewest
