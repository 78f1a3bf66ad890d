"""Our training step beside a peer's and beside what the hardware allows, on fixed workloads, in one run.

    python benchmarks/train.py --workload finetuning --model d             on one GPU; also --model x, h and --workload pretraining
    python benchmarks/train.py --workload pretraining --model d --cached   the encoder's features from the cache
    python benchmarks/train.py --workload finetuning --model d --size tiny --device cpu     a minute, to see that all of it runs
    python benchmarks/train.py --workload finetuning --size 7b --contenders ours,fp8        our step in bf16 and in fp8
    python benchmarks/train.py --workload finetuning --data real --threads 8        pictures from shards, read and decoded as it trains
    … model.kernels=te model.fp8=current                                   any setting of ours, as `nvlm train` takes them
    … --profile step                                                       one step of ours by component: a trace and a page in step/

Contenders (benchmarks/contenders): `ours`, the real training step of this project (fp32 master weights and gradients, checkpoints and
layouts one setting away); `ceiling`, the same by hand in plain PyTorch, without any of that; `peer`, transformers' InternVL; if asked for, `fp8`,
ours with model.fp8=current. Shapes are those of InternViT-300M and Qwen2-1.5B, or of layers of Qwen2-7B. Each runs in a process of its
own, one after the other; a line of JSON each, then a table. TFLOP/s count useful operations only: no padding, logits of supervised
tokens, frozen parts forward. Seconds are medians.

With --data real ours alone runs, over scikit-image's photographs at web sizes (or --shards FOLDER, indexed), beside the same rows held in
memory: what the loader makes it wait, and p95 over median of a step's seconds per useful operation. Seconds are means there.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

if not __package__:     # python benchmarks/train.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders.result import memory_bound
from benchmarks.contenders.workloads import SHAPES, WORKLOADS, pieces

CONTENDERS = ("ours", "ceiling", "peer")
OURS = {"ours": [], "fp8": ["model.fp8=current"]}       # contender -> settings of ours
PHOTOGRAPHS, FEW = 512, 64      # samples of --data real; at tiny size


def alone(asked: argparse.Namespace) -> dict:
    """What this process was started for: one contender's measurement."""
    import torch

    from benchmarks.contenders import ceiling, ours, peer, real
    from benchmarks.contenders.result import matmul_tflops

    shapes = SHAPES[asked.size]
    work = pieces(asked.workload, shapes)
    torch.manual_seed(0)
    own = asked.alone in OURS
    settings = [*OURS[asked.alone], *asked.settings] if own else []
    if asked.data == "real":
        found = real.measure(asked.workload, shapes, asked.model, shards_of(asked), asked.threads, asked.steps, asked.rounds, settings)
    elif own:
        found = ours.measure(asked.workload, work, shapes, asked.rounds, asked.model, asked.cached, asked.profile, settings)
    else:
        found = {"ceiling": ceiling, "peer": peer}[asked.alone].measure(asked.workload, work, shapes, asked.rounds)
    cuda = torch.cuda.is_available()
    found["matmul_tflops"] = matmul_tflops(torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32)
    return {"contender": asked.alone, "workload": asked.workload, "model": asked.model if own else "d",
            "cached": asked.cached and own, "data": asked.data, "size": asked.size, "settings": settings,
            "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__, **found}


def shards_of(asked: argparse.Namespace) -> Path:
    """The folder asked for, else one of photographs, made once in the cache."""
    from benchmarks.peers.material import shard_folder
    from data_prep.tiny import default_cache

    return asked.shards or shard_folder(default_cache() / "benchmark", FEW if asked.size == "tiny" else PHOTOGRAPHS)


def measured(contender: str, asked: argparse.Namespace) -> dict | None:
    """Run one contender in its own process. None if it failed: what it said is on the screen."""
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", contender]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if asked.device == "cpu" else {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        print(f"{contender} failed with exit code {done.returncode}", file=sys.stderr)
        return None
    print(lines[-1], flush=True)
    return json.loads(lines[-1])


def table(found: list[dict]) -> str:
    """Markdown. Ratios to the ceiling and to the peer of the same run, in samples a second; beside our peak memory its bound."""
    peaks = {one["contender"]: one["peak_gib"] for one in found}
    by = {one["contender"]: one["samples_s"] for one in found}
    lines = ["| contender | samples/s | of the ceiling | of the peer | TFLOP/s | of the matmul rate | peak GiB | slowest / median step |",
             "|---|---|---|---|---|---|---|---|"]
    for one in found:
        ratio = {name: f"{one['samples_s'] / by[name]:.2f}×" if name in by else "–" for name in ("ceiling", "peer")}
        peak = "–" if one["peak_gib"] is None else f"{one['peak_gib']:.1f}"
        if one.get("trained") and peaks.get("ceiling"):
            bound = memory_bound(peaks["ceiling"], one["trained"])
            peak += f" ({'within' if one['peak_gib'] <= bound else 'above'} {bound:.1f})"
        name = f"{one['contender']} (NVLM-{one['model'].upper()}{', cached features' if one['cached'] else ''})" \
            if one["contender"] in OURS else one["contender"]
        lines.append(f"| {name} | {one['samples_s']:.1f} | {ratio['ceiling']} | {ratio['peer']} | {one['tflops']:.4g} | "
                     f"{one['tflops'] / one['matmul_tflops']:.1%} | {peak} | {one['slowest'] / one['seconds']:.2f} |")
    if {"ours", "fp8"} <= by.keys():
        lines += ["", f"fp8: {by['fp8'] / by['ours']:.2f}× ours"]
    return "\n".join(lines)


def table_of_real(one: dict) -> str:
    """Markdown, for one contender over shards."""
    lines = ["| | samples/s | of in memory | TFLOP/s | waits, ms a step (p95) | share | p95 / median of seconds per operation | peak GiB |",
             "|---|---|---|---|---|---|---|---|"]
    peak = "–" if one["peak_gib"] is None else f"{one['peak_gib']:.1f}"
    lines.append(f"| in memory | {one['samples_s_in_memory']:.1f} | 1 | | | | {one['spread_in_memory']:.2f} | |")
    lines.append(f"| from shards, {one['threads']} threads | {one['samples_s']:.1f} | {one['of_memory']:.2f} | {one['tflops']:.4g} | {one['wait_ms']:.1f} "
                 f"({one['wait_ms_p95']:.1f}) | {one['wait_share']:.1%} | {one['spread']:.2f} | {peak} |")
    told = (f"{one['steps']} steps, {one['epochs']:.1f} epochs, {one['refused']} slots refused; {one['cores']} cores, of which others used "
            f"{one['others']:.1f}; load {one['load']:.1f}")
    return "\n".join([*lines, "", told])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="finetuning")
    parser.add_argument("--model", choices=("d", "x", "h"), default="d")
    parser.add_argument("--size", choices=sorted(SHAPES), default="1.5b")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which, in which order; also fp8")
    parser.add_argument("--cached", action="store_true", help="ours reads the encoder's features from the cache")
    parser.add_argument("--data", choices=("fixed", "real"), default="fixed")
    parser.add_argument("--shards", type=Path, metavar="FOLDER", help="of --data real; default: photographs, made once")
    parser.add_argument("--threads", type=int, default=8, help="of the loader, with --data real (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of a round, with --data real (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", metavar="FOLDER", help="where the time of one step of ours goes: a trace and a page")
    parser.add_argument("--json", metavar="FILE", help="also write the lines there")
    parser.add_argument("--alone", choices=(*CONTENDERS, "fp8"), help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of ours")
    asked = parser.parse_intermixed_args()
    if unknown := set(asked.contenders.split(",")) - {*CONTENDERS, *OURS}:
        parser.error(f"--contenders {', '.join(sorted(unknown))}: there are {', '.join(CONTENDERS)} and fp8")
    if asked.data == "real":
        if asked.contenders not in (",".join(CONTENDERS), "ours") or asked.cached or asked.profile:
            parser.error("--data real runs ours alone, and knows neither --cached nor --profile (train with profile=20-22 for that)")
        asked.contenders = "ours"
    if asked.alone:
        print(json.dumps(alone(asked)))
        return 0
    found = [one for name in asked.contenders.split(",") if (one := measured(name, asked)) is not None]
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1))
    print(f"\n{asked.workload}, {asked.size}, {found[0]['device'] if found else 'nothing ran'}\n")
    print(table_of_real(found[0]) if asked.data == "real" and found else table(found))
    return int(len(found) < len(asked.contenders.split(",")))


if __name__ == "__main__":
    sys.exit(main())
