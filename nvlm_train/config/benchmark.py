"""A benchmark as recipes/eval/NAME.yaml has it: plain frozen dataclasses. Nothing of this is part of a run: any run can be asked."""

from dataclasses import dataclass, field
from pathlib import Path

from nvlm_train.config.settings_file import read_settings
from nvlm_train.config.typed import build, suggestion
from nvlm_train.errors import ConfigError


@dataclass(frozen=True)
class Fields:
    """Which fields of a public record hold what; `a.b` is b within a. What a benchmark has not is empty.

    id: empty for the record's number. images: in their order. category: by which scores are also given. kept: what the scorer needs.
    """

    question: str
    truths: str
    id: str = ""
    images: tuple[str, ...] = ()
    choices: str = ""
    category: str = ""
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What is asked. Braces hold fields of the record, {question} and, where there are options, {options}.

    plain: a question without options. choice: one with options; option: a line of them. pictures: what stands for all pictures
    before the text: a line each, or `numbered`, as NVLM's public code does for several.
    """

    plain: str = "{question}"
    choice: str = "{question}\n{options}"
    option: str = "{letter}. {text}"
    pictures: str = "plain"


@dataclass(frozen=True)
class Shot:
    """An example that is shown before the question, as turns of their own."""

    question: str
    answer: str


@dataclass(frozen=True)
class Package:
    """An installed Python package whose files are read where `eval.data` names no folder. folder: of the files, among the packages."""

    name: str
    version: str
    folder: str


@dataclass(frozen=True)
class Generated:
    """Questions that a seeded generator makes. size: of each task. tasks: their names, and settings other than the generator's own."""

    seed: int
    size: int
    tasks: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Benchmark:
    """
    title, source: for people; source is where the public files are.
    reader: what the files are (evaluation/readers). shape: what else their records need (evaluation/benchmark/shapes.py).
    files: names or globs within the folder that `eval.data` names. also: further files by the name that the reader gives them.
    folders: what is read without `eval.data`; package: where it is found without; generated: what is made, not read.
    count: questions of the public release; another number means another version. 0: not known.
    max_new_tokens: longest answer. scorer, options: evaluation/benchmark/marking.py. points: what a score of 1 is called, 100 or 1,000.
    """

    title: str
    source: str
    reader: str
    scorer: str
    max_new_tokens: int
    count: int
    fields: Fields
    files: tuple[str, ...] = ()
    also: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    package: Package | None = None
    generated: Generated | None = None
    shape: str = "none"
    prompt: Prompt = field(default_factory=Prompt)
    shots: tuple[Shot, ...] = ()
    options: dict[str, float] = field(default_factory=dict)
    points: int = 100
    name: str = ""


def benchmark_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_benchmark(name: str, folder: Path) -> Benchmark:
    """The benchmark of `folder`/NAME.yaml. Raises ConfigError: there is none, or its file says what no benchmark has."""
    known = benchmark_names(folder)
    if name not in known:
        raise ConfigError(f"eval={name}: there is no such benchmark{suggestion(name, known)} (known: {', '.join(known)})")
    tree = read_settings(f"eval={name}", folder / f"{name}.yaml")
    try:
        return build(Benchmark, {**tree, "name": name})
    except ConfigError as error:
        raise ConfigError([f"eval={name}: {problem}" for problem in error.problems]) from error
