"""Putting a benchmark's questions to a model, on every rank of a job, and marking what it writes.

Questions are read and asked some at a time, so the pictures of a large benchmark need not fit the memory.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_prep import tiny
from nvlm_train.config.benchmark import Benchmark
from nvlm_train.data.encode import Encoder
from nvlm_train.engine.agree import on_every_rank, on_main
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation.benchmark.answers import write_answers
from nvlm_train.evaluation.benchmark.marking import ALL, marked
from nvlm_train.evaluation.benchmark.questions import Question, Questions
from nvlm_train.evaluation.benchmark.results import Answered, Result, result_of
from nvlm_train.evaluation.readers.packages import folder_of
from nvlm_train.evaluation.scorers.mark import Mark
from nvlm_train.evaluation.tasks import written
from nvlm_train.training.logs import write_atomically

FOLDER = "benchmarks"       # of a run directory
AT_ONCE = 256       # questions, with their pictures, in memory at a time
_MARKED_AT_ONCE = 16    # answers marked between two collectives: HumanEval runs each up to 13 seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asker:
    """Who is asked, and how.

    blind: why the model cannot be asked about pictures, if so. go_on: asked on every rank between parts of the work; a collective
    that says the same on all of them. False breaks the work off.
    """

    engine: Engine
    encoder: Encoder
    max_new_tokens: int
    blind: str | None = None
    at_once: int = AT_ONCE
    go_on: Callable[[], bool] = field(default=lambda: True)


class BrokenOff(Exception):
    """Asking was broken off, as `Asker.go_on` said. Nothing of it is kept."""


@dataclass(frozen=True)
class Round:
    """All answers to a benchmark, the same on every rank. shown: some of their questions with the pictures, by their number."""

    answered: Sequence[Answered]
    shown: dict[int, Question]


def find_questions(engine: Engine, benchmark: Benchmark, data: str | None, limit: int) -> Questions:
    """The questions, from the folder `data`, else from what the benchmark names. A collective. Raises DataError, ConfigError."""
    folders = on_main(engine, f"finding the files of {benchmark.name}", partial(folders_of, benchmark, data), DataError)
    opened: list[Questions] = []
    on_every_rank(engine, f"opening {benchmark.name}", lambda: opened.append(Questions(benchmark, folders, limit)), DataError)
    return opened[0]


def folders_of(benchmark: Benchmark, data: str | None) -> list[str]:
    """`data`, or where the benchmark is without: in a package, or built in. Raises DataError."""
    if benchmark.package and not data:
        return [str(folder_of(benchmark.package, benchmark.name))]
    return [tiny.resolve(folder) for folder in ([data] if data else benchmark.folders)]


def put(asker: Asker, questions: Questions, shown: int = 0) -> Round:
    """Ask all questions and mark the answers. A collective. shown: how many questions to keep with their pictures.

    Raises ConfigError for pictures to a blind model, DataError where questions cannot be read or none could be put, BrokenOff.
    """
    benchmark, asked, texts = questions.benchmark, [], []
    kept = {i * questions.count // shown for i in range(shown)} if shown else set()
    pictured: dict[int, Question] = {}
    left = iter(questions)
    while part := _next(asker, left):
        if asker.blind and any(question.images for question in part):
            raise ConfigError(f"eval={benchmark.name} asks about pictures: {asker.blind}")
        texts += written(asker.engine, asker.encoder, [question.sample(benchmark.name) for question in part], asker.max_new_tokens)
        pictured |= {number: question for number, question in enumerate(part, len(asked)) if number in kept}
        asked += [question.without_pictures() for question in part]
        if questions.count > asker.at_once:
            log.info("%s: %s of %s questions", benchmark.name, f"{len(asked):,}", f"{questions.count:,}")
        _check(asker)
    if texts and all(refused for _, refused in texts):
        raise DataError(f"none of the {len(asked):,} questions could be put, the first because: {texts[0][1]}. An answer of up to "
                        f"{asker.max_new_tokens:,} tokens must fit a sample with its question: raise data.max_tokens and "
                        "data.pack_tokens, or lower eval.max_new_tokens")
    marks = _marks(asker, benchmark, [text for text, _ in texts], asked)
    return Round([Answered(question, text, mark, refused)
                  for question, (text, refused), mark in zip(asked, texts, marks, strict=True)], pictured)


def _next(asker: Asker, left: Iterator[Question]) -> list[Question]:
    """The next questions, or none. Where one rank cannot read them all ranks must hear of it, instead of waiting for its answers."""
    part: list[Question] = []
    on_every_rank(asker.engine, "reading the benchmark's files", lambda: part.extend(itertools.islice(left, asker.at_once)), DataError)
    return part


def _marks(asker: Asker, benchmark: Benchmark, texts: Sequence[str], asked: Sequence[Question]) -> list[Mark]:
    """Given by the main rank. The others wait for each part, which must not take as long as a collective may."""
    size = len(texts) if benchmark.scorer in ALL else _MARKED_AT_ONCE
    found: list[Mark] = []
    for start in range(0, len(texts), max(1, size)):
        part = slice(start, start + size)
        found += on_main(asker.engine, f"scoring {benchmark.name}", partial(marked, benchmark, texts[part], asked[part]), DataError)
        _check(asker)
    return found


def _check(asker: Asker) -> None:
    if not asker.go_on():
        raise BrokenOff


def keep(out: Path, benchmark: Benchmark, answered: Sequence[Answered], facts: Mapping) -> Result:
    """The answers into `out`/NAME.jsonl, then what they come to, with these facts, into `out`/NAME.json: who finds it finds both."""
    result = result_of(benchmark, answered)
    out.mkdir(parents=True, exist_ok=True)
    write_answers(out / f"{benchmark.name}.jsonl", answered)
    text = json.dumps({**facts, **result.as_json()}, indent=2, ensure_ascii=False)
    write_atomically(out / f"{benchmark.name}.json", text.encode("utf-8"))
    return result


def has_score(out: Path, name: str, limit: int, max_new_tokens: int) -> bool:
    """Whether a folder has a benchmark's score, asked like this."""
    try:
        facts = json.loads((out / f"{name}.json").read_bytes())
        return (facts["limit"], facts["max_new_tokens"]) == (limit, max_new_tokens)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def scores_folder(run_dir: Path, stage: str, step: int) -> Path:
    """Where answers to all benchmarks after a step are kept."""
    return run_dir / FOLDER / f"{stage}-step-{step:08d}"


def figures(result: Result) -> dict:
    """What a row of eval.jsonl says of a result."""
    whole = result.overall
    return {"score": whole.score, "low": whole.low, "high": whole.high, "questions": whole.count}
