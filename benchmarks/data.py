"""The whole data path against other loaders, on two cores: `python benchmarks/data.py`

Read, decode, tile (up to six tiles of 448 px and a thumbnail) and tokenise, over the same webdataset tars:

    nvlm_train   the loader that training uses: order, hashes verified, laid out and packed into rows; and one sample a row
    usual        Megatron-Energon and webdataset with Pillow: decode, bicubic resize, crop, ToTensor and Normalize for each tile
    fast         the same two with this project's decoding and tiling in their hands: what differs is the loader; Energon also with
                 its samples packed into rows by its own hooks, which is what ours does
    floor        no loader: turbo decode and one resize, a thread for each core, pictures already in memory

Each peer runs in a virtual environment of its own, made on the first run under --work (1 GB each), with the releases of torch, Pillow
and the like that are installed here, and with the number of workers, of those tried in the first round, that served it best. A run is
an epoch in a process of its own, timed after its first --warm samples; contenders take turns. CPU time is that of all a contender's
processes. Exit status: 0 if all ran and did equal work, 1 if one could not be installed, failed, or gave other samples, tiles or text.
"""

import argparse
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:     # started as a file: the root of the repository takes the place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.data_path import TUNED
from benchmarks.peers.material import shard_folder
from benchmarks.peers.processes import ContenderFailed, interpreter, measure
from benchmarks.peers.with_nvlm_train import WARM_STEPS
from benchmarks.results import tell
from data_prep.tiny import default_cache

WORK = ("samples", "tiles", "text_tokens")      # what must be equal


@dataclass
class Contender:
    """One row of the table. module: in benchmarks.peers; requirement: what pip installs for it, None for ours and the floor.

    workers: the numbers to try; after the first round only the best is left. runs: what each of its runs told. failure: why there are
    no more.
    """

    name: str
    module: str
    way: str
    workers: tuple[int, ...]
    requirement: str | None = None
    runs: list[dict] = field(default_factory=list)
    failure: str | None = None

    @property
    def best(self) -> dict:
        return max(self.runs, key=lambda run: run["samples_per_s"])

    @property
    def counted(self) -> list[dict]:
        """The runs with the number of workers that served best."""
        return [run for run in self.runs if run["workers"] == self.best["workers"]]


def contenders(cores: int, tried: tuple[int, ...]) -> list[Contender]:
    """Ours first, the floor last. tried: numbers of the peers' worker processes."""
    energon, webdataset = "megatron-energon==7.4.1", "webdataset==1.0.2"
    return [Contender("nvlm_train", "with_nvlm_train", "packed", (cores,)),
            Contender("nvlm_train, a sample a row", "with_nvlm_train", "unpacked", (cores,)),
            Contender("Energon, usual", "with_energon", "usual", tried, energon),
            Contender("webdataset, usual", "with_webdataset", "usual", tried, webdataset),
            Contender("Energon, fast", "with_energon", "fast", tried, energon),
            Contender("webdataset, fast", "with_webdataset", "fast", tried, webdataset),
            Contender("Energon, fast, in rows", "with_energon", "fast_rows", tried, energon),
            Contender("floor", "floor", "floor", (cores,))]


def interpreters(rows: Sequence[Contender], options: argparse.Namespace) -> dict[str | None, Path | str]:
    """requirement -> the Python to run it with. Rows whose peer cannot be installed have failed."""
    found: dict[str | None, Path | str] = {None: sys.executable}
    for requirement in dict.fromkeys(row.requirement for row in rows if row.requirement):
        try:
            found[requirement] = sys.executable if options.here else interpreter(options.work, requirement)
        except ContenderFailed as error:
            print(f"{requirement}: {error}", file=sys.stderr, flush=True)
            for row in rows:
                row.failure = str(error) if row.requirement == requirement else row.failure
    return found


def take_turns(rows: Sequence[Contender], shards: Path, options: argparse.Namespace) -> None:
    """All rounds. A contender that fails once is left out from then on, with its reason kept."""
    pythons = interpreters(rows, options)
    settings = {"OMP_NUM_THREADS": "1"} if options.default_malloc else TUNED
    for number in range(1, options.rounds + 1):
        for row in rows:
            if row.failure is None:
                take_turn(row, f"round {number}: {row.name}", shards, pythons[row.requirement], settings, options)


def take_turn(row: Contender, title: str, shards: Path, python: Path | str, settings: Mapping[str, str], options: argparse.Namespace) -> None:
    """One run with each number of workers that is still of interest."""
    for workers in row.workers:
        arguments = [str(shards), "--way", row.way, "--workers", str(workers), "--warm", str(options.warm)]
        try:
            run = measure(python, row.module, arguments, settings, limit_s=120 + options.samples)
        except ContenderFailed as error:
            row.failure = str(error)
            print(f"{title}: {error}", file=sys.stderr, flush=True)
            return
        row.runs.append({**run, "workers": workers})
        print(f"{title}, {workers} workers: {run['samples_per_s']:.1f} samples/s, {run['cpu_ms']:.1f} ms CPU, others {run['others']:.2f}",
              file=sys.stderr, flush=True)
    row.workers = (row.best["workers"],)


def unequal(rows: Sequence[Contender]) -> list[str]:
    """What differs from the first run of ours, in every run of every contender; the floor knows samples only."""
    expected = {key: rows[0].runs[0][key] for key in WORK}
    return [f"{row.name} with {run['workers']} workers: {run[key]:,} {key}, ours {expected[key]:,}"
            for row in rows for run in row.runs for key in (WORK[:1] if row.module == "floor" else WORK) if run[key] != expected[key]]


def table(rows: Sequence[Contender]) -> list[str]:
    ours = rows[0].best["samples_per_s"] if rows[0].runs else None
    lines = [f"{'contender':<28}{'workers':>8}{'samples/s':>11}{'slowest':>9}{'CPU ms':>8}{'others':>8}{'ours is':>9}"]
    for row in rows:
        if row.runs:
            best, slowest = row.best, min(run["samples_per_s"] for run in row.counted)
            cpu = min(run["cpu_ms"] for run in row.counted)
            ratio = f"{ours / best['samples_per_s']:.2f}x" if ours else ""
            lines.append(f"{row.name:<28}{best['workers']:>8}{best['samples_per_s']:>11.1f}{slowest:>9.1f}{cpu:>8.2f}{best['others']:>8.2f}{ratio:>9}")
        if row.failure:
            lines.append(f"{row.name:<28} {row.failure}")
    return lines


def machine() -> dict:
    """What the figures depend on besides the code."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores_used": len(os.sched_getaffinity(0)), "cores": os.cpu_count(), "python": platform.python_version(),
            "load": [round(load, 2) for load in os.getloadavg()]}


def result(rows: Sequence[Contender]) -> dict:
    told = {row.name: {"workers": row.best["workers"], "samples_per_s": round(row.best["samples_per_s"], 2),
                       "rounds": [round(run["samples_per_s"], 2) for run in row.counted],
                       "others": round(row.best["others"], 3), "cpu_ms_per_sample": round(min(run["cpu_ms"] for run in row.counted), 3),
                       "tried": {str(run["workers"]): round(run["samples_per_s"], 2) for run in reversed(row.runs)},
                       "versions": row.best["versions"], **{key: row.best[key] for key in WORK}} for row in rows if row.runs}
    ours = rows[0].best["samples_per_s"] if rows[0].runs else None
    return {"contenders": told, "failed": {row.name: row.failure for row in rows if row.failure},
            "ours_over": {row.name: round(ours / row.best["samples_per_s"], 3) for row in rows[1:] if row.runs and ours}}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=default_cache() / "benchmark", help="folder for shards and environments (%(default)s)")
    parser.add_argument("--samples", type=int, default=1024, help="samples of the epoch (%(default)s)")
    parser.add_argument("--warm", type=int, default=128, help=f"samples that are not timed, {WARM_STEPS} steps of ours (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="cores that all are held to (%(default)s)")
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes to try with the peers (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="besides ours, only contenders whose names in the table hold one of these")
    parser.add_argument("--default-malloc", action="store_true", help="leave the C library's memory settings as they are")
    parser.add_argument("--here", action="store_true", help="look for the peers among the packages installed here, make no environments")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args(arguments)
    options.work = options.work.expanduser().resolve()
    options.workers = tuple(int(number) for number in options.workers.split(","))
    step = options.warm // WARM_STEPS
    if not step or options.warm % WARM_STEPS or options.samples <= options.warm or options.samples % step:
        parser.error(f"--warm {options.warm} is {WARM_STEPS} whole steps, and --samples {options.samples} more of such steps")
    if len(os.sched_getaffinity(0)) < options.cores:
        parser.error(f"--cores {options.cores}, and this process may use {len(os.sched_getaffinity(0))}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))     # so that a contender is ended too, as after Ctrl-C
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:options.cores])     # inherited by every contender
    try:
        facts = machine()
        ours, *others = contenders(options.cores, options.workers)
        rows = [ours, *(row for row in others if not options.only or any(word in row.name for word in options.only))]
        take_turns(rows, shard_folder(options.work, options.samples), options)
    finally:
        os.sched_setaffinity(0, before)
    print(f"{facts['cpu']}, {facts['cores_used']} of {facts['cores']} cores, load {facts['load'][0]} at the start; best of {options.rounds} rounds")
    print("others: cores that other processes used during the best run; figures hold where it is about 0")
    print("C library's memory settings:", "its own" if options.default_malloc else "kept from returning buffers to the kernel, for all alike")
    print("\n".join(table(rows)))
    differences = unequal(rows) if rows[0].runs else ["nothing to compare with: ours did not run"]
    work = ", ".join(f"{rows[0].best[key]:,} {key.replace('_', ' ')}" for key in WORK) if rows[0].runs else ""
    print("Not the same work: " + "; ".join(differences) if differences else f"Equal work in every run: {work}")
    tell({"machine": facts, "default_malloc": options.default_malloc, **result(rows), "unequal": differences}, options.json)
    return 1 if differences or any(row.failure for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
