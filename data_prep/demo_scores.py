"""The demo's measurements, on every rank of a job: `torchrun -m data_prep.demo_scores RUN UNBLENDED OUT`.

RUN is the demo's run (both stages), UNBLENDED the one finetuned without text-only samples, OUT the file for the scores.
Three checkpoints are asked: RUN after pretraining (its language model is still as it came), RUN and UNBLENDED after finetuning.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from data_prep import tiny
from data_prep.demo import MAX_NEW_TOKENS, PICTURE_TASKS
from nvlm_train.config.dump import runs_from_file
from nvlm_train.config.schema import Layout, Run
from nvlm_train.contracts import Sample
from nvlm_train.evaluation import predictions
from nvlm_train.evaluation.commands import Model, open_model
from nvlm_train.evaluation.scores import Score, score
from nvlm_train.evaluation.tasks import Answer, ask, blanked, read_questions
from nvlm_train.training.logs import write_atomically
from nvlm_train.training.report import write_predictions


def questions(name: str) -> list[Sample]:
    return read_questions(tiny.resolve(f"builtin:demo/{name}_test"), name)


def answers(model: Model, samples: list[Sample]) -> list[Answer]:
    return ask(model.engine, model.encoder, samples, MAX_NEW_TOKENS)


def overall(found: list[Answer]) -> Score:
    return score([(answer.correct, answer.truths) for answer in found])


def measure_run(run: Run, folder: Path) -> dict:
    """Scores of the finetuned model on everything; its answers go to the run's gallery."""
    model = open_model([run], str(folder / "checkpoints" / "sft"))
    scores, shown = {}, []
    for task in PICTURE_TASKS:
        samples = questions(task)
        seeing, blind = answers(model, samples), answers(model, [blanked(sample) for sample in samples])
        marks = overall(seeing)
        scores[task] = {"with_images": marks.accuracy, "blanked": overall(blind).accuracy, "majority": marks.majority_accuracy}
        shown += seeing
    text = answers(model, questions("text"))
    scores["text_only"] = {"blended": overall(text).accuracy}
    if model.engine.is_main:
        write_predictions(folder, predictions.rows([*shown, *text], model.encoder, MAX_NEW_TOKENS))
    model.engine.close()
    return scores


def measure_text(run: Run, checkpoint: Path) -> float:
    """Accuracy on the text-only questions, put as a chat."""
    model = open_model([run], str(checkpoint))
    accuracy = overall(answers(model, questions("text"))).accuracy
    model.engine.close()
    return accuracy


def main(folder: Path, unblended: Path, out: Path) -> None:
    run = next(run for run in runs_from_file(folder / "config.yaml") if run.stage == "sft")
    # Training split the layers over the processes; answering, each holds the whole small model and takes its share of the questions.
    run = replace(run, layout=Layout())
    scores = measure_run(run, folder)
    before = measure_text(run, folder / "checkpoints" / "pretrain")
    after = measure_text(run, unblended / "checkpoints" / "sft")
    scores["text_only"] = {"before": before, **scores["text_only"], "unblended": after}
    write_atomically(out, json.dumps(scores, indent=2).encode())


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(*(Path(argument) for argument in sys.argv[1:4]))
