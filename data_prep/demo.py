"""The whole method in minutes, on two CPU cores: `make demo`, or `python -m data_prep.demo [FOLDER]` (default runs/demo).

    1. data        shapes, rendered text and sums, from installed packages
    2. training    pretraining, then finetuning with text-only samples blended in: one launch of two processes
    3. unblended   finetuning once more from the same pretraining, without text-only samples
    4. scores      held-out questions with pictures, with the pictures blanked, and without any
    5. report      a table, FOLDER/summary.json and FOLDER/report.html

An interrupted demo goes on where it stopped. Exit code: 0 done, 1 a stage failed or the model does not use its pictures.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep import tiny
from nvlm_train.comparison.processes import run_module
from nvlm_train.errors import NvlmError
from nvlm_train.training.logs import write_atomically
from nvlm_train.training.progress import duration
from nvlm_train.training.report import write_report

ASSETS = Path(__file__).parent / "assets"
LANGUAGE, VISION = ASSETS / "demo_language.safetensors", ASSETS / "demo_vision.safetensors"    # made by data_prep.backbones
PROCESSES = 2
PICTURE_TASKS = ("easy_vqa", "rendered_text")
MAX_NEW_TOKENS = 6  # of an answer
MARGIN = 0.15       # accuracy that pictures must add to the shapes' questions for the demo to have shown anything


def main(arguments: list[str]) -> int:
    began = time.perf_counter()
    folder = Path(arguments[0] if arguments else "runs/demo")
    console = Console(highlight=False)
    try:
        scores = run_stages(folder, console)
    except NvlmError as error:
        console.print(f"the demo failed: {error}\nIt goes on from here when it is started again.", style="red", markup=False)
        return 1
    summary = {"seconds": round(time.perf_counter() - began, 1), **scores}
    write_atomically(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    report = write_report(folder)
    console.print(picture_table(summary), text_table(summary))
    console.print(f"{duration(summary['seconds'])} in all. Report: {report}", soft_wrap=True)
    ask = f'python -m nvlm_train generate checkpoint={folder} layout.pipeline=1 prompt="Calculate 12 + 7."'
    console.print(f"Ask it: {ask}", soft_wrap=True)
    gain = summary["easy_vqa"]["with_images"] - summary["easy_vqa"]["blanked"]
    if gain < MARGIN:
        problem = f"Pictures added {gain:.1%} on questions about shapes, less than {MARGIN:.0%}: the model did not learn to see."
        console.print(problem, style="red", soft_wrap=True)
        return 1
    return 0


def run_stages(folder: Path, console: Console) -> dict:
    """All stages in order; returns the scores. Raises NvlmError."""
    unblended, log, scores = folder / "unblended", folder.with_suffix(".log"), folder / "scores.json"
    start = folder / "checkpoints" / "pretrain"
    weights = [f"model.vision.weights={VISION}", f"model.language.weights={LANGUAGE}"]
    train = ["nvlm_train", "train", "recipe=nvlm_d_demo", *weights]
    log.parent.mkdir(parents=True, exist_ok=True)
    stages: list[tuple[str, Callable[[], object]]] = [
        ("data: shapes, rendered text, sums",
         lambda: tiny.ensure("demo", progress=lambda name: console.print(f"  wrote {name}"))),
        (f"training: both stages, {PROCESSES} processes",
         lambda: launch([*train, f"run.dir={folder}"], log, console)),
        ("unblended: finetuning without text-only samples",
         lambda: launch([*train, "stage=sft", f"run.dir={unblended}", f"init={start}", "~data.blend.text"], log, console)),
        ("scores: held-out questions",
         lambda: launch(["data_prep.demo_scores", str(folder), str(unblended), str(scores)], log, console)),
    ]
    for number, (name, work) in enumerate(stages, start=1):
        began = time.perf_counter()
        console.rule(f"{number}/{len(stages)} {name}", align="left")
        work()
        console.print(f"  {duration(time.perf_counter() - began)}")
    return json.loads(scores.read_text())


def launch(module: list[str], log: Path, console: Console) -> None:
    """Run a module under torchrun; telling lines are shown, everything is appended to `log`. Raises ProcessFailed."""
    run_module(module, PROCESSES, log, console)


def picture_table(summary: dict) -> Table:
    """Accuracy on the questions about pictures."""
    table = Table("questions about pictures", "with images", "images blanked", "commonest answer")
    for task, name in (("easy_vqa", "shapes (easy-vqa, test split)"), ("rendered_text", "rendered text (held-out pictures)")):
        table.add_row(name, *(f"{summary[task][column]:.1%}" for column in ("with_images", "blanked", "majority")))
    return table


def text_table(summary: dict) -> Table:
    """Accuracy on the text-only questions: what finetuning on pictures costs, and what blending text in saves."""
    table = Table("questions without pictures", "before finetuning", "after, with text blended in", "after, without")
    columns = ("before", "blended", "unblended")
    table.add_row("sums (reasoning-gym, held out)", *(f"{summary['text_only'][column]:.1%}" for column in columns))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
