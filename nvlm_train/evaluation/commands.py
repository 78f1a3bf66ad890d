"""`nvlm eval` and `nvlm generate`: load a checkpoint under any layout, ask it, print what it says.

Every rank runs these; the main rank prints and writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep import tiny
from nvlm_train.config.schema import Run
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.engine.agree import on_main
from nvlm_train.errors import ConfigError, DataError, SampleRefused
from nvlm_train.evaluation import predictions
from nvlm_train.evaluation.opening import Model, open_model
from nvlm_train.evaluation.scores import Score
from nvlm_train.evaluation.tasks import Answer, ask, read_questions, scores_by_task
from nvlm_train.training.logs import EVAL
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
    at = {"stage": f"{model.manifest.stage} scores", "step": model.manifest.step, "kind": "score"}
    with (model.run_dir / EVAL).open("a", encoding="utf-8") as file:
        for task, score in scores.items():
            kept = {"accuracy": score.accuracy, "majority": score.majority_accuracy, "questions": score.count}
            file.write(json.dumps({**at, "task": task, "scores": kept}) + "\n")
    write_predictions(model.run_dir / "predictions.jsonl", predictions.rows(answers, model.encoder, options["max_new_tokens"]))
    write_report(model.run_dir)


def _print_scores(model: Model, answers: Sequence[Answer], scores: Mapping[str, Score]) -> None:
    table = Table("task", "questions", "accuracy", "always the commonest answer", title=str(model.checkpoint))
    for task, score in scores.items():
        table.add_row(task, f"{score.count:,}", f"{score.accuracy:.1%}", f"{score.majority_accuracy:.1%} ({score.majority})")
    Console().print(table)
    if refused := [answer for answer in answers if answer.refused]:
        print(f"{len(refused)} questions could not be put and count as wrong: {refused[0].sample.key}: {refused[0].refused}")


def generate_command(runs: Sequence[Run], options: Mapping) -> None:
    """Answer `options["prompt"]` about the pictures `options["image"]` (files; may be none), and print the answer.

    options: checkpoint, image, prompt, max_new_tokens, json. Pictures stand before the prompt unless it holds as many `<image>`.
    """
    images = tuple(Path(path).read_bytes() for path in options["image"])
    sample = Sample("prompt", "prompt", images, (Turn("user", options["prompt"]), Turn("assistant", "")))
    model = open_model(runs, options["checkpoint"])
    if images and model.blind:
        raise ConfigError(f"image={options['image'][0]}: {model.blind}")
    encoder = _short_rows(model, sample, options["max_new_tokens"])
    [answer] = ask(model.engine, encoder, [sample], options["max_new_tokens"])
    if answer.refused:
        raise DataError(f"the question cannot be put: {answer.refused}")
    if model.engine.is_main:
        asked = {"checkpoint": str(model.checkpoint), "images": options["image"], "prompt": options["prompt"]}
        facts = {**asked, "answer": answer.text}
        print(json.dumps(facts, ensure_ascii=False) if options["json"] else answer.text)


def _short_rows(model: Model, sample: Sample, new_tokens: int) -> Encoder:
    """The model's encoder, with rows no longer than this question needs: one row is run for every token of the answer.

    A pipeline's stages exchange rows of a fixed length, so there it stays.
    """
    encoder, layout = model.encoder, model.run.layout
    if layout.pipeline > 1:
        return encoder
    try:
        needed = encoder.encode_prompt(sample, reserve=new_tokens).length + new_tokens
    except SampleRefused:       # said when it is asked
        return encoder
    step = 64 * layout.tensor
    shorter = replace(encoder.data, pack_tokens=min(encoder.data.pack_tokens, -(-needed // step) * step))
    return Encoder(encoder.model, shorter, encoder.tokenizer)
