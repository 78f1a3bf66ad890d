"""Rules of what is asked while training: benchmarks that there are, and a guard that watches text (see `rules`)."""

from collections.abc import Iterator

from nvlm_train.config.benchmark import Benchmark, load_benchmark
from nvlm_train.config.schema import Run
from nvlm_train.config.settings_file import recipes_dir
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import ConfigError


def benchmarks_of(run: Run) -> list[Benchmark]:
    """Those of `evaluate.benchmarks`, in their order. Raises ConfigError for one that there is not."""
    return [load_benchmark(name, recipes_dir() / "eval") for name in run.evaluate.benchmarks]


def guarded_of(run: Run) -> list[Benchmark]:
    """Those that the text guard watches: the named ones, else all without pictures."""
    named = run.guard.benchmarks
    return [benchmark for benchmark in benchmarks_of(run)
            if (benchmark.name in named if named is not None else not benchmark.fields.images)]


def known_benchmarks(run: Run) -> Iterator[str]:
    """Each exists, is named once, and can be found on the disk."""
    names = run.evaluate.benchmarks
    if len(set(names)) < len(names):
        yield f"evaluate.benchmarks={list(names)} names one twice: once is enough"
    for name in dict.fromkeys(names):
        try:
            benchmark = load_benchmark(name, recipes_dir() / "eval")
        except ConfigError as error:
            yield from (problem.replace(f"eval={name}", f"evaluate.benchmarks: {name}") for problem in error.problems)
            continue
        if not (benchmark.folders or benchmark.package) and name not in run.evaluate.data:
            yield f"evaluate.data.{name} is needed: the folder of the public files ({benchmark.source})"
    for name in run.evaluate.data:
        if name not in names:
            yield f"evaluate.data.{name}: {name} is not among evaluate.benchmarks={list(names)}{suggestion(name, list(names))}"


def guarded_text(run: Run) -> Iterator[str]:
    """The guard watches what is asked, and only text: with pictures there is no backbone's score to compare with."""
    if run.guard.margin > 100:
        yield f"guard.margin={run.guard.margin:g} is counted in points of 100"
    named = run.guard.benchmarks or ()
    yield from (f"guard.benchmarks: {name} is not among evaluate.benchmarks={list(run.evaluate.benchmarks)}: add it there"
                for name in named if name not in run.evaluate.benchmarks)
    try:
        pictures = [benchmark.name for benchmark in benchmarks_of(run) if benchmark.name in named and benchmark.fields.images]
    except ConfigError:
        return      # said by the other rule
    yield from (f"guard.benchmarks: {name} asks about pictures, which the backbone has never seen: name benchmarks of text alone"
                for name in pictures)
    if run.guard.stop and not guarded_of(run):
        yield ("guard.stop=true, but there is nothing to watch: name benchmarks of text alone in evaluate.benchmarks, such as gsm8k "
               "or mmlu")


EVALUATE_RULES = (known_benchmarks, guarded_text)
