"""Asking one finished training its questions, on every rank of a job: `python -m nvlm_train.comparison.asking RUN STEP OUT ASKED`.

RUN is a run directory, STEP the checkpoint, OUT the file for the scores, ASKED a JSON object with `tasks` (name -> folder of
shards), `limit` and `max_new_tokens`. OUT: {"asked": ASKED, "step": int, "tasks": {task: {"accuracy", "blanked", "majority",
"questions"}}}; `blanked`, the accuracy with every picture grey, is null for a task without pictures.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from data_prep import tiny
from nvlm_train.config.dump import runs_from_file
from nvlm_train.config.schema import Layout, Run
from nvlm_train.contracts import Sample
from nvlm_train.engine.agree import on_main
from nvlm_train.errors import DataError
from nvlm_train.evaluation import predictions
from nvlm_train.evaluation.commands import Model, open_model
from nvlm_train.evaluation.tasks import Answer, ask, blanked, read_questions, scores_by_task
from nvlm_train.parallel.groups import stop
from nvlm_train.training.logs import EVAL, JsonLines, write_atomically
from nvlm_train.training.report import write_predictions, write_report


def main(folder: Path, step: Path, out: Path, asked: Mapping) -> None:
    """Ask, mark, and keep: `out`, the run's eval.jsonl, predictions.jsonl and report.html. A collective."""
    model = open_model([_as_asked(runs_from_file(folder / "config.yaml")[-1])], str(step))
    samples: list[Sample] = []
    for name, path in asked["tasks"].items():
        where = on_main(model.engine, f"finding {path}", partial(tiny.resolve, path), DataError)
        samples += read_questions(where, name, asked["limit"])
    answers = ask(model.engine, model.encoder, samples, asked["max_new_tokens"])
    tasks = marks(answers, blind_answers(model, answers, asked["max_new_tokens"]))
    keep = partial(_keep, model, folder, out, asked, tasks, answers)
    on_main(model.engine, "writing the scores", keep, DataError)


def _as_asked(run: Run) -> Run:
    """On a CPU each process holds the whole model and takes its share of the questions: the host's memory is one anyway."""
    return run if run.run.device != "cpu" and torch.cuda.is_available() else replace(run, layout=Layout())


def blind_answers(model: Model, answers: Sequence[Answer], max_new_tokens: int) -> list[Answer]:
    """The answers to the same questions about grey pictures. Questions without pictures are not asked again."""
    seeing = [answer.sample for answer in answers if answer.sample.images]
    again = iter(ask(model.engine, model.encoder, [blanked(sample) for sample in seeing], max_new_tokens))
    return [next(again) if answer.sample.images else answer for answer in answers]


def marks(answers: Sequence[Answer], blind: Sequence[Answer]) -> dict[str, dict]:
    """Task -> its figures, see the module."""
    scores, unseen = scores_by_task(answers), scores_by_task(blind)
    pictured = {answer.task for answer in answers if answer.sample.images}
    return {task: {
        "accuracy": score.accuracy, "blanked": unseen[task].accuracy if task in pictured else None,
        "majority": score.majority_accuracy, "questions": score.count,
    } for task, score in scores.items()}


def _keep(model: Model, folder: Path, out: Path, asked: Mapping, tasks: Mapping, answers: Sequence[Answer]) -> None:
    write_predictions(folder, predictions.rows(answers, model.encoder, asked["max_new_tokens"]))
    at = {"stage": f"{model.manifest.stage} scores", "step": model.manifest.step, "kind": "score"}
    log = JsonLines(folder / EVAL)
    for task, figures in tasks.items():
        shown = {"with_images": figures["accuracy"], "blanked": figures["blanked"]} if figures["blanked"] is not None else {
            "accuracy": figures["accuracy"]}
        log.append({**at, "task": task, "scores": {**shown, "majority": figures["majority"]}})
    log.close()
    write_report(folder)
    # Last: this file is what says that the asking is done.
    write_atomically(out, json.dumps({"asked": asked, "step": model.manifest.step, "tasks": tasks}, indent=2).encode("utf-8"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(*map(Path, sys.argv[1:4]), asked=json.loads(sys.argv[4]))
    stop()
