"""What watching costs a step, and the picture of the live view, both from the rows of a run that was trained.

    python -m benchmarks.watching cost RUN              milliseconds that each sink takes of a step
    python -m benchmarks.watching picture RUN FILE.svg  the live view as it stood after the run's last step

`cost` plays the run's rows to each sink, a step every 20 ms. "called" is the time that the training thread spends in the call, "cpu"
the processor time of all threads of this process a step. Trackers are measured twice: called directly, and in the background, as
`nvlm train` does it. wandb runs offline; its own process is not counted.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.results import tell
from nvlm_train.config.dump import runs_from_file
from nvlm_train.training.background import Background
from nvlm_train.training.live import LiveView
from nvlm_train.training.logs import EVAL, EXAMPLES, METRICS, Logs, read_rows
from nvlm_train.training.metrics import Sink, StepRecord
from nvlm_train.training.panel import panel
from nvlm_train.training.progress import ProgressLine
from nvlm_train.training.tensorboard_sink import TensorBoardSink
from nvlm_train.training.view import watch
from nvlm_train.training.wandb_sink import WandbSink
from nvlm_train.training.watched import Watched

PACE_S = 0.02
COLUMNS = 100


def cost(run_dir: Path, steps: int) -> dict[str, dict[str, float]]:
    """Sink -> milliseconds a step."""
    runs, rows = runs_from_file(run_dir / "config.yaml"), read_rows(run_dir / METRICS)
    run = next(each for each in runs if each.stage == rows[0]["stage"])
    run = replace(run, run=replace(run.run, wandb="offline"))
    rows = [row for row in rows if row["stage"] == run.stage]
    records = [StepRecord({**rows[step % len(rows)], "step": step + 1}, ()) for step in range(steps)]
    terminal = {"file": io.StringIO(), "width": COLUMNS, "height": 60}
    with tempfile.TemporaryDirectory() as folder:
        trackers: dict[str, Callable[[], Sink]] = {
            "TensorBoard": lambda: TensorBoardSink(run, Path(folder), 0),
            "wandb": lambda: WandbSink(runs, run, Path(folder), 0, {}),
        }
        sinks: dict[str, Callable[[], Sink]] = {
            "logs": lambda: Logs(Path(folder)),
            "plain lines": lambda: ProgressLine(run, Console(**terminal, force_terminal=False)),
            "live view": lambda: LiveView(watch(runs, run, 0), Console(**terminal, force_terminal=True)),
            **{f"{name}, direct": make for name, make in trackers.items()},
            **{name: lambda name=name, make=make: Background(name, make) for name, make in trackers.items()},
        }
        return {name: _played(make(), records) for name, make in sinks.items()}


def _played(sink: Sink, records: list[StepRecord]) -> dict[str, float]:
    took = []
    sink.step(records[0])       # opens files and screens
    time.sleep(1)
    began = time.process_time()
    for record in records[1:]:
        at = time.perf_counter()
        sink.step(record)
        took.append(time.perf_counter() - at)
        time.sleep(PACE_S)
    cpu = (time.process_time() - began) / len(took)
    sink.close()
    return {"called_ms": 1e3 * statistics.fmean(took), "called_worst_ms": 1e3 * max(took), "cpu_ms": 1e3 * cpu}


def picture(run_dir: Path, file: Path) -> None:
    """Draw the live view as it stood after the last step of a run."""
    runs, rows = runs_from_file(run_dir / "config.yaml"), read_rows(run_dir / METRICS)
    run = next(each for each in runs if each.stage == rows[-1]["stage"])
    seen = watch(runs, run, 0)
    for row in rows:
        if row["stage"] == run.stage:
            seen.step(row)
    _fill(seen, run_dir)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(panel(seen, COLUMNS))
    console.save_svg(str(file), title=f"nvlm train recipe={run.recipe}")


def _fill(seen: Watched, run_dir: Path) -> None:
    """What happened beside the steps."""
    for row in read_rows(run_dir / EVAL):
        if row["stage"] == seen.stage:
            seen.validation = row
    answered = [row for row in read_rows(run_dir / EXAMPLES) if row["stage"] == seen.stage]
    if answered:
        last = max(row["step"] for row in answered)
        seen.answered(last, [row for row in answered if row["step"] == last])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "picture"))
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    asked = parser.parse_args()
    if asked.what == "picture":
        if asked.file is None:
            parser.error("picture takes a file to write")
        picture(asked.run, asked.file)
        return
    found = cost(asked.run, asked.steps)
    print(f"{'milliseconds a step':<22}{'called':>10}{'worst':>10}{'cpu':>10}")
    for name, took in found.items():
        print(f"{name:<22}{took['called_ms']:>10.3f}{took['called_worst_ms']:>10.3f}{took['cpu_ms']:>10.3f}")
    tell(found, asked.json)


if __name__ == "__main__":
    sys.exit(main())
