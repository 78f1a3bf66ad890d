"""`nvlm eval` and `nvlm generate`: load a checkpoint under any layout, ask it, print what it says.

Every rank runs these; the main rank prints and writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep import tiny
from nvlm_train.config.schema import Run
from nvlm_train.engine.agree import on_main
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation import predictions
from nvlm_train.evaluation.kept import keep_scores
from nvlm_train.evaluation.opening import Model, open_model
from nvlm_train.evaluation.scores import Score
from nvlm_train.evaluation.tasks import Answer, ask, read_questions, scores_by_task
from nvlm_train.training.report import write_predictions, write_report


def eval_command(runs: Sequence[Run], options: Mapping) -> None:
    """Score a checkpoint on `options["data"]`, a folder of shards, or on the run's validation data; print and keep the scores.

    options: checkpoint, data, limit (questions of each source, 0: all), max_new_tokens, json. The scores go to the run's
    eval.jsonl, examples to its predictions.jsonl, and its report is written anew.
    """
    model = open_model(runs, options["checkpoint"])
    folders = {Path(options["data"]).name: options["data"]} if options["data"] else {
        name: source.path for name, source in model.run.data.validation.items()}
    if not folders:
        raise ConfigError("nothing to evaluate on: the run has no data.validation; add eval.data=FOLDER of indexed shards")
    answers: list[Answer] = []
    for name, path in folders.items():
        folder = on_main(model.engine, f"finding {path}", partial(tiny.resolve, path), DataError)
        questions = read_questions(folder, name, options["limit"])
        if model.blind and any(question.images for question in questions):
            raise ConfigError(f"{path} asks about pictures: {model.blind}")
        answers += ask(model.engine, model.encoder, questions, options["max_new_tokens"])
    scores = scores_by_task(answers)
    on_main(model.engine, "writing the scores", partial(_report_scores, model, answers, scores, options), DataError)


def _report_scores(model: Model, answers: Sequence[Answer], scores: Mapping[str, Score], options: Mapping) -> None:
    if options["json"]:
        print(json.dumps({"checkpoint": str(model.checkpoint), "tasks": {task: asdict(score) for task, score in scores.items()}}))
    else:
        _print_scores(model, answers, scores)
    if model.run_dir is None:
        return
    keep_scores(model, {task: {"accuracy": score.accuracy, "majority": score.majority_accuracy, "questions": score.count}
                        for task, score in scores.items()})
    write_predictions(model.run_dir / "predictions.jsonl", predictions.rows(answers, model.encoder, options["max_new_tokens"]))
    write_report(model.run_dir)


def _print_scores(model: Model, answers: Sequence[Answer], scores: Mapping[str, Score]) -> None:
    table = Table("task", "questions", "accuracy", "always the commonest answer", title=str(model.checkpoint))
    for task, score in scores.items():
        table.add_row(task, f"{score.count:,}", f"{score.accuracy:.1%}", f"{score.majority_accuracy:.1%} ({score.majority})")
    Console().print(table)
    if refused := [answer for answer in answers if answer.refused]:
        print(f"{len(refused)} questions could not be put and count as wrong: {refused[0].sample.key}: {refused[0].refused}")
