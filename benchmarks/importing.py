"""How fast `nvlm import` is beside a plain copy of the same files, and how much memory it takes. `python -m benchmarks.importing`

A Hugging Face folder of random bf16 weights in the shape of a published model (default: Qwen2-7B, 15 GB in 4 shards) is
written to --work, copied, imported by the command line in a process of its own, and all of it is deleted again. Before each
the source's files are dropped from the page cache, and both wait until their bytes are on the disk; they take turns, and the
fastest round counts. CPU seconds, of all threads, tell how much of the time was waiting. Anonymous memory is sampled from
/proc while the import runs: pages of mapped files are the kernel's to take back and do not count.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.results import tell
from benchmarks.timing import took
from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Language
from nvlm_train.engine.folders import as_size
from nvlm_train.huggingface.import_plan import ImportPlan, plan_import
from nvlm_train.huggingface.import_source import open_source
from nvlm_train.huggingface.language_config import write_language
from nvlm_train.huggingface.names import language_entries
from nvlm_train.huggingface.shard_writer import Planned, ShardWriter

ALLOWED = 1.3       # times the largest shard and one layer: the memory that an import may take
NOISE = 1 << 25     # random numbers, which are used again and again: what they are makes no difference to a copy


def make_model(folder: Path, language: Language, shard_gb: float) -> None:
    """A published model's files with random numbers in them, on the disk when this returns."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(write_language(language)))
    noise = torch.randn(NOISE).to(torch.bfloat16)
    planned = [Planned(name, torch.bfloat16, shape) for entry in language_entries(language)
               for name, shape in zip(entry.theirs, entry.their_shapes, strict=True)]
    with ShardWriter(folder, planned, int(shard_gb * 1e9)) as writer:
        for tensor in planned:
            count = tensor.size // 2
            writer.write(tensor.name, noise.repeat(-(-count // NOISE))[:count].view(tensor.shape))
    flush(folder)


def flush(folder: Path, forget: bool = False) -> None:
    """Bring a folder's files to the disk; `forget`: and out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if forget:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Taken(NamedTuple):
    """seconds and CPU seconds; anonymous: most bytes of memory that no file stands for."""

    seconds: float
    cpu_seconds: float
    anonymous: int = 0


def copy(source: Path, target: Path) -> Taken:
    """A plain copy."""
    def act() -> None:
        shutil.copytree(source, target)
        flush(target)

    flush(source, forget=True)
    taken = Taken(*took(act))
    shutil.rmtree(target)
    return taken


def bring_in(source: Path, target: Path) -> Taken:
    """An import, Python's start and everything that it loads included."""
    flush(source, forget=True)
    began, cpu = time.perf_counter(), _cpu_of_children()
    process = subprocess.Popen([sys.executable, "-m", "nvlm_train", "import", f"from={source}", f"to={target}"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.01)
    taken = Taken(time.perf_counter() - began, _cpu_of_children() - cpu, peak)
    if process.returncode:
        raise SystemExit(process.stderr.read())
    shutil.rmtree(target)
    return taken


def _cpu_of_children() -> float:
    """Seconds of all processes that were started here and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def anonymous(pid: int) -> int:
    """Bytes of a process's resident memory that no file stands for; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def largest_layer(plan: ImportPlan) -> int:
    """Bytes of the largest layer, or of the largest tensor outside the layers."""
    layers: dict[str, int] = {}
    for tensor in plan.tensors:
        layer = re.match(r".*layers\.\d+\.", tensor.name)
        key = layer[0] if layer else tensor.name
        layers[key] = layers.get(key, 0) + tensor.size
    return max(layers.values())


def measure(source: Path, work: Path, rounds: int) -> dict:
    plan = plan_import(open_source(str(source)))
    copies, imports = [], []
    for _ in range(rounds):
        copies.append(copy(source, work / "copy"))
        imports.append(bring_in(source, work / "imported"))
    shard = max(path.stat().st_size for path in source.glob("*.safetensors"))
    best, plain = min(imports), min(copies)
    return {"bytes": plan.size, "largest_shard": shard, "largest_layer": largest_layer(plan),
            "copy": {"seconds": plain.seconds, "cpu_seconds": plain.cpu_seconds},
            "import": {"seconds": best.seconds, "cpu_seconds": best.cpu_seconds},
            "speed_of_copy": plain.seconds / best.seconds, "peak_anonymous": max(taken.anonymous for taken in imports),
            "allowed_anonymous": int(ALLOWED * (shard + largest_layer(plan)))}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for the model twice")
    parser.add_argument("--language", default="qwen2_7b", help="an entry of recipes/language")
    parser.add_argument("--shard-gb", type=float, default=4.0, help="gigabytes of a shard of the source")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that differ")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args(arguments)
    language = compose(["recipe=nvlm_d_tiny", "stage=sft", f"language={options.language}", *options.overrides])[0].model.language
    work = options.work / f"importing-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        make_model(work / "published", language, options.shard_gb)
        result = {"language": options.language, "rounds": options.rounds, **measure(work / "published", work, options.rounds)}
    finally:
        shutil.rmtree(work)
    for way in ("copy", "import"):
        print(f"{way:<8}{result[way]['seconds']:>8.1f} s{result[way]['cpu_seconds']:>8.1f} CPU s"
              f"{result['bytes'] / result[way]['seconds'] / 1e6:>8.0f} MB/s")
    print(f"{as_size(result['bytes'])} imported at {result['speed_of_copy']:.2f} of the copy's speed")
    print(f"most anonymous memory {as_size(result['peak_anonymous'])}, allowed {as_size(result['allowed_anonymous'])}: "
          f"{ALLOWED} x (shard {as_size(result['largest_shard'])} + layer {as_size(result['largest_layer'])})")
    tell(result, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
