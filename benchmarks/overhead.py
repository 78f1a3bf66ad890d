"""What the host does in a training step outside of torch, and what share of a GPU's time that is. `python benchmarks/overhead.py`

The real training step (`train_step` of NVLM-D, -X or -H, finetuning) with as many layers as InternViT-300M and Qwen2-1.5B but so narrow
that arithmetic costs next to nothing, on a CPU. What remains is what the host of a GPU does, too: it calls and issues. Told for a row
(a micro-batch, from steps of few and of many rows) and for a step beside its rows:

    host        all of it: torch's operators at these sizes, autograd, Python
    Python      of it the time in Python functions, ours and Megatron's and torch's; what is in torch's C++ is left out
    stand-in    the Python that stands in for CUDA on a CPU (parallel/cpu.py), which is not there on a GPU and not in `Python`
    by hand     the same model in plain PyTorch (contenders/ceiling.py)

Host times are CPU time, the least of steps in turn. Python's share of them is cProfile's, of the quickest of several steps; it delays Python
more than C++, so the share is an upper bound.
On a GPU the host runs ahead, so none of it adds to a step as long as the host needs less for a row than the GPU; shares are of the GPU's
time for a row of 8,192 tokens at 1.5B: 96 samples in 14 rows at 35.8 samples a second, the hand-written step's on one H100 (--row-s says
another).
"""

import argparse
import cProfile
import pstats
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

if not __package__:     # python benchmarks/overhead.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders import ceiling, ours
from benchmarks.contenders.workloads import SHAPES, Piece, Shapes
from benchmarks.results import tell
from benchmarks.timing import took
from nvlm_train.contracts import StepBatch
from nvlm_train.engine.megatron import MegatronEngine

ROW_S = 96 / 35.8 / 14
FEW, MANY = 2, 6        # rows of a step
STAND_IN = ("nvlm_train/parallel/cpu.py", "torch/overrides.py")
WORK = Piece(tiles=1, text=32, supervised=16)       # of a row: one sample, so that attention is one call, as on a GPU


@dataclass(frozen=True)
class Host:
    """Milliseconds of a row, and of a step beside its rows; python_ms, stand_in_ms: at most so much of a row."""

    row_ms: float
    step_ms: float
    python_ms: float
    stand_in_ms: float


def narrow(layers: int, vit_layers: int) -> Shapes:
    """The tiny sizes, as deep as asked; a row is one sample."""
    tiny = SHAPES["tiny"]
    return replace(tiny, layers=layers, vit_layers=vit_layers, row=WORK.tiles * tiny.tile_tokens + WORK.text)


def timed(step: Callable[[int], object], rounds: int) -> tuple[float, float]:
    """(milliseconds a row, milliseconds a step beside its rows) of steps of few and of many rows, in turn."""
    found: dict[int, list[float]] = {FEW: [], MANY: []}
    step(FEW)
    for _ in range(rounds):
        for rows, seen in found.items():
            seen.append(1e3 * took(partial(step, rows)).cpu_seconds)
    few, many = (min(found[rows]) for rows in (FEW, MANY))
    row = (many - few) / (MANY - FEW)
    return row, few - FEW * row


def host(step: Callable[[int], object], rounds: int) -> Host:
    row, beside = timed(step, rounds)
    few, many = (min((profiled(step, rows) for _ in range(rounds)), key=lambda one: one["all"]) for rows in (FEW, MANY))
    whole, python, stand_in = ((many[kind] - few[kind]) / (MANY - FEW) for kind in ("all", "python", "stand-in"))
    return Host(row, beside, row * python / whole, row * stand_in / whole)


def profiled(step: Callable[[int], object], rows: int) -> dict[str, float]:
    """Seconds of a step under cProfile: in all, in Python functions, and of these in what stands in for CUDA."""
    profile = cProfile.Profile()
    profile.runcall(step, rows)
    found = {"all": 0.0, "python": 0.0, "stand-in": 0.0}
    for (file, _, name), (_, _, seconds, *_) in pstats.Stats(profile).stats.items():
        found["all"] += seconds
        if file.endswith(STAND_IN):
            found["stand-in"] += seconds
        elif file != "~" or not ("torch" in name or name == "<built-in method apply>"):    # ~: C; apply: of an autograd function
            found["python"] += seconds
    return found


def measure(architecture: str, shapes: Shapes, rounds: int, overrides: Sequence[str] = ()) -> dict:
    run = ours.run_of("finetuning", architecture, shapes, ["run.device=cpu", "data.max_tiles=1", *overrides])
    engine = MegatronEngine(run)
    rows = ours.rows_of(run, [WORK] * MANY, architecture, shapes, False, engine.dtype)

    def step(count: int) -> None:
        engine.train_step(StepBatch(0, rows[:count], (), 0), 1e-5)

    found = host(step, rounds)
    engine.close()
    return {"model": architecture, **vars(found)}


def by_hand(shapes: Shapes, rounds: int) -> dict:
    """Forward, backward and AdamW of the same model in plain PyTorch, NVLM-D."""
    model = ceiling.Everything(shapes)
    for part in (model.patches, model.encoder):
        part.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    rows = ceiling.rows_of([WORK] * MANY, shapes, torch.device("cpu"), torch.float32)

    def step(count: int) -> None:
        for row in rows[:count]:
            model(row).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {"model": "by hand", **vars(host(step, rounds))}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="d,x,h")
    parser.add_argument("--layers", default="28,24", help="of the language model and of the encoder (1.5B: %(default)s; tiny: 2,2)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--row-s", type=float, default=ROW_S, help="seconds of the GPU for a row (%(default).3f)")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of ours")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shapes = narrow(*map(int, asked.layers.split(",")))
    found = [measure(name, shapes, asked.rounds, asked.settings) for name in asked.models.split(",")]
    if dist.is_initialized():
        dist.destroy_process_group()
    found.append(by_hand(shapes, asked.rounds))
    row_ms = 1e3 * asked.row_s
    print(f"{shapes.layers} and {shapes.vit_layers} layers; a row takes the GPU {row_ms:.0f} ms, of which 5% are {0.05 * row_ms:.1f}")
    print(f"{'model':<9}{'host, ms a row':>15}{'of the GPU':>12}{'Python':>9}{'of the GPU':>12}{'stand-in':>10}{'ms a step':>11}")
    for one in found:
        print(f"{one['model']:<9}{one['row_ms']:>15.1f}{one['row_ms'] / row_ms:>12.1%}{one['python_ms']:>9.1f}"
              f"{one['python_ms'] / row_ms:>12.1%}{one['stand_in_ms']:>10.1f}{one['step_ms']:>11.1f}")
    tell({"layers": shapes.layers, "vit_layers": shapes.vit_layers, "row_s": asked.row_s, "found": found}, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
