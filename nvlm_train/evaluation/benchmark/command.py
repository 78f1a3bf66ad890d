"""`nvlm eval eval=NAME` asks a model a benchmark's questions and scores it; `nvlm score` scores answers that a file has."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nvlm_train.config.benchmark import Benchmark
from nvlm_train.config.schema import Run
from nvlm_train.engine.agree import on_main
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation.benchmark.answers import read_answers
from nvlm_train.evaluation.benchmark.asking import (
    AT_ONCE,
    Asker,
    Round,
    figures,
    find_questions,
    folders_of,
    keep,
    put,
    scores_folder,
)
from nvlm_train.evaluation.benchmark.marking import check_scorer, marked
from nvlm_train.evaluation.benchmark.questions import Questions
from nvlm_train.evaluation.benchmark.results import Answered, Result, Share, result_of
from nvlm_train.evaluation.kept import keep_scores
from nvlm_train.evaluation.opening import Model, open_model
from nvlm_train.training.report import write_report


def benchmark_command(runs: Sequence[Run], benchmark: Benchmark, options: Mapping) -> None:
    """Ask a checkpoint a benchmark's questions; print and keep the score.

    options: checkpoint, data (folder of the public files), limit, max_new_tokens, out (folder for NAME.jsonl, the answers, and
    NAME.json, the score; default: `benchmarks` in the run directory, a folder for every step), json. A row goes to the run's
    eval.jsonl, and its report is written anew. A collective.
    """
    check_scorer(benchmark)
    model = open_model(runs, options["checkpoint"])
    out = _out(model, options["out"])
    questions = find_questions(model.engine, benchmark, options["data"], options["limit"])
    asked = put(Asker(model.engine, model.encoder, options["max_new_tokens"], model.blind, AT_ONCE), questions)
    on_main(model.engine, f"keeping the score of {benchmark.name}", partial(_finish, model, benchmark, asked, out, options), DataError)


def _out(model: Model, out: str | None) -> Path:
    """Known before anything is asked: hours of answers must have a place."""
    if out:
        return Path(out).expanduser()
    if model.run_dir is None or model.manifest is None:
        raise ConfigError(f"{model.checkpoint} lies in no run directory: add eval.out=FOLDER for the answers and the score")
    return scores_folder(model.run_dir, model.manifest.stage, model.manifest.step)


def _finish(model: Model, benchmark: Benchmark, asked: Round, out: Path, options: Mapping) -> None:
    facts = {"checkpoint": str(model.checkpoint), "limit": options["limit"], "max_new_tokens": options["max_new_tokens"]}
    result = keep(out, benchmark, asked.answered, facts)
    _show(result, benchmark, {**facts, **result.as_json()}, str(model.checkpoint), options["json"])
    if model.run_dir is None or model.manifest is None:
        return
    keep_scores(model, {benchmark.name: figures(result)})
    write_report(model.run_dir)


def score_command(benchmark: Benchmark, predictions: Path, data: str | None, limit: int, as_json: bool) -> None:
    """Score a file of answers to a benchmark's questions, and print the score. Needs no model. Raises ConfigError, DataError."""
    check_scorer(benchmark)
    questions = [question.without_pictures() for question in Questions(benchmark, folders_of(benchmark, data), limit)]
    texts = read_answers(predictions, [question.id for question in questions])
    marks = marked(benchmark, texts, questions)
    result = result_of(benchmark, [Answered(*one) for one in zip(questions, texts, marks, strict=True)])
    _show(result, benchmark, {"predictions": str(predictions), "limit": limit, **result.as_json()}, str(predictions), as_json)


def _show(result: Result, benchmark: Benchmark, facts: Mapping, title: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    table = Table(benchmark.title, "questions", f"score of {benchmark.points:,}", "95% interval", title=title)
    rows = {"all": result.overall, **(result.by_category if len(result.by_category) > 1 else {})}
    for name, share in rows.items():
        table.add_row(name, f"{share.count:,}", *_shown(share, benchmark.points))
    Console().print(table)
    if result.unanswered:
        print(f"{result.unanswered} questions could not be put and count 0: their reasons are in the file of answers")


def _shown(share: Share, points: int) -> tuple[str, str]:
    return f"{share.score * points:.1f}", f"{share.low * points:.1f} to {share.high * points:.1f}"
