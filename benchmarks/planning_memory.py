"""Memory said beforehand and memory found. `python -m benchmarks.planning_memory`

Without a GPU: a step of each layout, simulated tensor by tensor (`planning.skeleton`), beside the arithmetic (`planning.memory`). kept:
what one row keeps for its backward, of all virtual stages; moment: the most alive beside weights, gradients and optimizer; total: with
them. Whole models: the default layouts take some minutes; name others as words of the command line, each in quotes.

    python -m benchmarks.planning_memory "recipe=nvlm_x_72b stage=sft layout.pipeline=2" "recipe=nvlm_d_2b stage=sft"

With --gpu, on a machine with one: real steps over full rows, torch.cuda.max_memory_allocated beside the arithmetic. The difference is to
stay within 8%. Weights are random; nothing is downloaded.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.results import tell
from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.errors import NvlmError
from nvlm_train.planning.activations import kept
from nvlm_train.planning.memory import rank_memory, tile_bytes
from nvlm_train.planning.rows import fullest
from nvlm_train.planning.sizes import Sizes
from nvlm_train.planning.skeleton import make_row, simulate, skeleton, standing_bytes

GB = 1e9
SIMULATED = tuple(f"recipe=nvlm_{recipe} stage={stage}" for recipe in ("d_72b", "x_72b", "h_72b", "d_34b", "d_2b") for stage in ("pretrain", "sft"))
ON_A_GPU = tuple(f"recipe=nvlm_{recipe}_2b stage={stage}" for recipe in "dxh" for stage in ("pretrain", "sft"))
DATA = 2                                    # data-parallel replicas of the simulated jobs
STEPS = 3


def simulated(layout: str) -> list[dict]:
    """Of each pipeline stage of a layout, in bytes."""
    run, found = compose(layout.split())[0], []
    size, split = fullest(run), run.layout
    world = split.tensor * split.pipeline * DATA
    for stage in range(split.pipeline):
        with skeleton(run, stage * split.tensor * DATA, world) as rank:
            standing = sum(standing_bytes(rank.chunks, rank.optimizer).values())
            step = simulate(rank, max(2, split.pipeline * (1 + (split.virtual > 1))))
        memory = rank_memory(run, world, stage)
        said = memory.tensors - tile_bytes(Sizes(run, size), DATA, stage)
        found.append({"layout": layout, "stage": stage, "kept": sum(step.saved.values()), "kept_said": sum(k.total for k in kept(run, size, stage)),
                      "moment": step.peak, "moment_said": said - memory.weights - memory.gradients - memory.optimizer,
                      "total": standing + step.peak, "total_said": said})
    return found


def measured(layout: str) -> dict:
    """Real steps on this machine's GPU."""
    words = [*layout.split(), "model.vision.weights=null", "model.language.weights=null", "run.device=cuda"]
    run = compose(words)[0]
    engine = MegatronEngine(run)
    row = replace(make_row(run, fullest(run), torch.device("cpu")), keys=("row",), sources=(next(iter(run.data.blend)),))
    for _ in range(STEPS):
        engine.train_step(StepBatch(0, [row, row], (), 0), run.train.lr)
    found = {"layout": layout, "device": torch.cuda.get_device_name(), "allocated": torch.cuda.max_memory_allocated(),
             "reserved": torch.cuda.max_memory_reserved(), "said": rank_memory(run, 1, 0).tensors}
    engine.close()
    torch.cuda.reset_peak_memory_stats()
    return found


def show_simulated(rows: Sequence[dict]) -> None:
    print(f"{'layout':<52}{'stage':>6}" + "".join(f"{name:>10}{'said':>10}{'ratio':>8}" for name in ("kept", "moment", "total")) + "   (GB)")
    for row in rows:
        figures = "".join(f"{row[name] / GB:>10.3f}{row[name + '_said'] / GB:>10.3f}{row[name + '_said'] / row[name]:>8.4f}"
                          for name in ("kept", "moment", "total"))
        print(f"{row['layout']:<52}{row['stage']:>6}{figures}")


def show_measured(rows: Sequence[dict]) -> None:
    print(f"{'layout':<52}{'allocated':>11}{'said':>9}{'ratio':>8}{'reserved':>10}   (GB)")
    for row in rows:
        print(f"{row['layout']:<52}{row['allocated'] / GB:>11.2f}{row['said'] / GB:>9.2f}{row['said'] / row['allocated']:>8.3f}"
              f"{row['reserved'] / GB:>10.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layouts", nargs="*", help="words of a run each, in quotes")
    parser.add_argument("--gpu", action="store_true", help="real steps on this machine's GPU")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args(arguments)
    try:
        if options.gpu:
            rows = [measured(layout) for layout in options.layouts or ON_A_GPU]
            show_measured(rows)
        else:
            rows = [stage for layout in options.layouts or SIMULATED for stage in simulated(layout)]
            show_simulated(rows)
    except NvlmError as error:
        print(error, file=sys.stderr)
        return 1
    tell({"measured" if options.gpu else "simulated": rows}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
