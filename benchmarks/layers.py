"""Times of a model's parts on this device, for the planner. `python benchmarks/layers.py recipe=nvlm_d_72b stage=sft --to times.json`

One rank's share of each part, at the recipe's own sizes, tensor-parallel size and recomputation, forward and backward, on one row that is
filled with pictures of six tiles and their questions: the encoder, one of its layers, the connector, embedding and fusion, each kind of
decoder layer, and the output with its loss. Real modules over Megatron's gradient buffers, kernels chosen as for a run. The other ranks
are not there: torch's fake process group answers their messages at once, so messages are not in the times (the planner models them).

    nvlm plan recipe=nvlm_d_72b stage=sft nodes=16 layer_times=times.json timeline=step.svg

Seconds are the fastest of several rounds: by the clock on a GPU, its work included, and of the processor on a CPU. A few layers
suffice, whatever the model's depth: GBs, not the model's size. --check ROWS also trains steps of the whole model, on this device
alone, and compares them with what these times predict: for models that fit it.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

if not __package__:     # python benchmarks/layers.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.calibrate import cpu_machine, known_gpu, memory_rate
from benchmarks.layer_parts import CHAIN, Parts, Rank, alone
from benchmarks.results import tell
from benchmarks.samples import full_row, one_sample
from benchmarks.timing import name_of, wait
from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run, Source
from nvlm_train.contracts import PackedBatch, StepBatch
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.geometry import geometry_of
from nvlm_train.kernels import plan_for
from nvlm_train.parallel.device import choose_device, choose_dtype
from nvlm_train.planning.fabric import Fabric, Link
from nvlm_train.planning.layer_times import LAYERS, LayerTimes, Timed, needed, settings_of, write_layer_times
from nvlm_train.planning.rates import machine
from nvlm_train.planning.step import Step, row_of
from nvlm_train.planning.timing import Memo, step_time, useful_of
from nvlm_train.training.metrics import sample_work

ANSWER = "what is it " * 40     # with a loss, beside a picture


def clock() -> float:
    """Once the device has nothing left to do. Other processes may be at work on a CPU."""
    wait()
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def timed(forward: Callable[[], Tensor], rounds: int, repeats: int, warm: int = 1) -> Timed:
    """Of one call: the fastest forward and the fastest backward, each of `repeats` calls in a row."""
    best = [float("inf")] * 2
    for number in range(warm + rounds):
        began = clock()
        outputs = [forward() for _ in range(repeats)]
        between = clock()
        gradients = [torch.ones_like(output) for output in outputs if output.requires_grad]
        after = clock()
        for output, gradient in zip(outputs, gradients, strict=False):
            output.backward(gradient)
        end = clock()
        if number >= warm:
            best = [min(best[0], between - began), min(best[1], end - after) if gradients else 0.0]
        del outputs, gradients
    return Timed(best[0] / repeats, best[1] / repeats)


def measure(run: Run, rounds: int) -> LayerTimes:
    """Raises ConfigError as building the run would."""
    device = choose_device(run.run.device)
    dtype = choose_dtype(run.model.dtype, device)
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    rank = Rank(run, device, dtype, plan_for(run.model, device.type, name))
    row = full_row(run, one_sample(3, run.model.vision.tile_size, ANSWER))
    repeats = CHAIN if device.type == "cuda" else 1     # a GPU must not wait for the host between them
    with alone(run.layout, run.train.seed):
        parts = Parts(rank, row)
        seconds = {part: timed(call, rounds, repeats) for part, call in parts.calls()}
        for kind, part in LAYERS.items():
            if part in needed(run):
                forward, count = parts.through_layers(*kind)
                both = timed(forward, rounds, 1 if count > 1 else repeats)
                seconds[part] = Timed(both.forward / count, both.backward / count)
    works = sample_work(row, geometry_of(run.model).tokens)
    return LayerTimes(name_of(device), torch.__version__, version("megatron-core"), settings_of(run, name),
                      row_of(works, run.data.pack_tokens), seconds)


def checked(run: Run, times: LayerTimes, rows: int, rounds: int) -> tuple[float, float]:
    """(measured, predicted) seconds of a step of `rows` such rows, on this device alone. The update is modelled."""
    row = full_row(run, one_sample(3, run.model.vision.tile_size, ANSWER))
    known = known_gpu(times.device)
    here = machine(known) if known else cpu_machine(1.0, 1.0, memory_rate(torch.device("cpu"), torch.float32, 1 << 20))
    nobody = Link(1e12, 0.0)
    kernels = plan_for(run.model, *(("cuda", "bf16") if known else ("cpu", "fp32")))
    on = Fabric(here, nobody, nobody, nobody, kernels=kernels)
    works = sample_work(row, geometry_of(run.model).tokens) * rows
    step = Step((times.row,) * rows, 1.0, 0.0)
    predicted = step_time(run, on, step, 1, useful_of(run, works), Memo(times)).seconds
    return steps_s(run, row, rows, rounds), predicted


def steps_s(run: Run, row: PackedBatch, rows: int, rounds: int) -> float:
    """Seconds of the fastest step of a run on `rows` such rows."""
    engine = MegatronEngine(replace(run, data=replace(run.data, blend={name: Source("unused") for name in row.sources}, validation={})))
    best = float("inf")
    for _ in range(1 + rounds):
        began = clock()
        engine.train_step(StepBatch(0, [row] * rows, (), 0), 1e-5)
        best = min(best, clock() - began)
    engine.close()
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="for layer_times= of nvlm plan")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--check", type=int, default=0, metavar="ROWS", help="also measure steps of so many rows of the whole model")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="recipe, stage, and what differs")
    asked = parser.parse_intermixed_args()
    [run, *others] = compose([*asked.settings, "model.vision.weights=null", "model.language.weights=null"])
    if others or (asked.check and (run.layout.tensor > 1 or run.layout.pipeline > 1)):
        parser.error("name one stage, stage=pretrain or stage=sft" if others else "--check needs layout.tensor=1 and layout.pipeline=1")
    times = measure(run, asked.rounds)
    write_layer_times(times, asked.to)
    print(f"{times.device}, torch {times.torch}, megatron-core {times.megatron_core}; a row of {times.row.tokens:,} tokens and {times.row.tiles} tiles")
    print(f"{'part':<24}{'forward ms':>12}{'backward ms':>13}")
    for part, both in times.seconds.items():
        print(f"{part:<24}{both.forward * 1e3:>12.3f}{both.backward * 1e3:>13.3f}")
    result = {"device": times.device, "seconds": {part: vars(both) for part, both in times.seconds.items()}}
    if asked.check:
        took, predicted = checked(run, times, asked.check, asked.rounds)
        print(f"a step of {asked.check} rows: {took * 1e3:.1f} ms measured, {predicted * 1e3:.1f} predicted, {predicted / took - 1:+.0%}")
        result["step"] = {"rows": asked.check, "measured_s": took, "predicted_s": predicted}
    tell(result, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
