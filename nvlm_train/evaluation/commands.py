"""`nvlm eval` and `nvlm generate`: load a checkpoint under any layout, ask it, print what it says.

Every rank runs these; the main rank prints and writes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep import tiny
from nvlm_train.config.rules import check_world
from nvlm_train.config.schema import Run
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.agree import on_main
from nvlm_train.engine.checkpoint import load, resolve
from nvlm_train.engine.interface import Engine
from nvlm_train.engine.manifest import Manifest, fingerprint
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation import predictions
from nvlm_train.evaluation.scores import Score
from nvlm_train.evaluation.tasks import Answer, ask, read_questions, scores_by_task
from nvlm_train.training.logs import EVAL
from nvlm_train.training.report import write_predictions, write_report
from nvlm_train.training.stages import build_engine


@dataclass(frozen=True)
class Model:
    """A model ready to be asked, and the checkpoint that it came from."""

    run: Run
    engine: Engine
    encoder: Encoder
    checkpoint: Path
    manifest: Manifest

    @property
    def run_dir(self) -> Path | None:
        """The run directory that the checkpoint lies in; None for a checkpoint that was moved out of one."""
        folder = self.checkpoint.resolve().parents[2]
        return folder if (folder / "config.yaml").is_file() else None


def open_model(runs: Sequence[Run], checkpoint: str) -> Model:
    """Build the engine and load the newest checkpoint at `checkpoint` (a run, a stage or a step). A collective.

    Raises CheckpointError, ConfigError.
    """
    path = resolve(checkpoint)
    manifest = Manifest.read(path)
    run = next((run for run in runs if run.stage == manifest.stage), runs[-1])
    # The checkpoint holds every weight, so the backbones that training began with need not be there.
    bare = replace(run.model, vision=replace(run.model.vision, weights=None), language=replace(run.model.language, weights=None))
    run = replace(run, model=bare)
    check_world(run, int(os.environ.get("WORLD_SIZE", "1")))
    tokenizer = load_tokenizer(run.model.tokenizer)
    engine = build_engine(run)
    load(path, engine, fingerprint(run, tokenizer.fingerprint), model_only=True)
    return Model(run, engine, Encoder(run.model, run.data, tokenizer), path, manifest)


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
        answers += ask(model.engine, model.encoder, read_questions(folder, name, options["limit"]), options["max_new_tokens"])
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
    [answer] = ask(model.engine, model.encoder, [sample], options["max_new_tokens"])
    if answer.refused:
        raise DataError(f"the question cannot be put: {answer.refused}")
    if model.engine.is_main:
        asked = {"checkpoint": str(model.checkpoint), "images": options["image"], "prompt": options["prompt"]}
        facts = {**asked, "answer": answer.text}
        print(json.dumps(facts, ensure_ascii=False) if options["json"] else answer.text)
