"""The comparison of docs/experiments.md: designs x seeds on the demo's data, marked on questions that no setting was chosen on.

    python -m benchmarks.experiments [FOLDER] [--seeds 1,2,3] [--at-once 2] [--designs d,x,h]

Every training is one process; `--at-once` of them run side by side, so that two cores are full without a pipeline's gaps. Started
again, it goes on. FOLDER (default runs/experiments) gets one run directory for each design and seed, compare.json, compare.html.
Needs the `demo` extra. Exit code: that of `nvlm compare`, or 1 if a training failed.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from data_prep import tiny
from data_prep.demo import LANGUAGE, MAX_NEW_TOKENS, VISION
from nvlm_train.comparison.running import SCORES

DESIGNS = {
    "d": "recipe=nvlm_d_demo",
    "d_no_tags": "recipe=nvlm_d_demo model.tags.kind=none",
    "d_one_tile": "recipe=nvlm_d_demo data.max_tiles=1",
    "x": "recipe=nvlm_x_demo",
    "x_no_tags": "recipe=nvlm_x_demo model.tags.kind=none model.cross_attention.tag_mask=false",
    "x_one_tile": "recipe=nvlm_x_demo data.max_tiles=1",
    "h": "recipe=nvlm_h_demo",
}
TASKS = {"rendered_text": "builtin:exam/rendered_text", "easy_vqa": "builtin:exam/easy_vqa", "text": "builtin:demo/text_test"}


def words(folder: Path, designs: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The command that compares these designs under these seeds."""
    shared = [f"model.vision.weights={VISION}", f"model.language.weights={LANGUAGE}", "layout.pipeline=1", "processes=1",
              f"eval.max_new_tokens={MAX_NEW_TOKENS}", f"run.dir={folder}", f"seeds={','.join(map(str, seeds))}"]
    return ["compare", *(f"designs.{name}={DESIGNS[name]}" for name in designs), *shared,
            *(f"eval.tasks.{name}={path}" for name, path in TASKS.items())]


def run_share(folder: Path, designs: Sequence[str], seeds: Sequence[int], share: int, shares: int) -> None:
    """Train and ask every `shares`-th job: other designs under each seed, so that no share gets all the slow ones."""
    with open(folder / f"share-{share}.log", "a", encoding="utf-8") as log:
        for turn, seed in enumerate(seeds):
            mine = designs[(share + turn) % shares::shares]
            command = [sys.executable, "-m", "nvlm_train", *words(folder, mine, [seed])]
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)


def watch(shares: Sequence[Future], folder: Path, jobs: Sequence[tuple[str, int]]) -> None:
    """Tell which trainings are done until all shares have ended."""
    told: set[tuple[str, int]] = set()
    while True:
        over = all(share.done() for share in shares)
        for name, seed in jobs:
            if (name, seed) not in told and (folder / name / f"seed-{seed}" / SCORES).is_file():
                told.add((name, seed))
                print(f"{time.strftime('%H:%M:%S')}  {len(told)}/{len(jobs)}  {name}, seed {seed} is trained and asked", flush=True)
        if over:
            return
        time.sleep(2)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--designs", type=lambda text: text.split(","), default=list(DESIGNS), help=f"some of {', '.join(DESIGNS)}")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="trainings at a time, a core each (default 2)")
    options = parser.parse_args(arguments)
    if unknown := set(options.designs) - set(DESIGNS):
        parser.error(f"no design is called {', '.join(sorted(unknown))}; there are {', '.join(DESIGNS)}")
    for dataset in ("demo", "exam"):
        tiny.ensure(dataset)    # before the trainings, which would all make it
    options.folder.mkdir(parents=True, exist_ok=True)
    shares = max(1, min(options.at_once, len(options.designs) // 2))     # it takes two designs to compare
    with ThreadPoolExecutor(shares) as pool:
        running = [pool.submit(run_share, options.folder, options.designs, options.seeds, share, shares) for share in range(shares)]
        watch(running, options.folder, [(name, seed) for seed in options.seeds for name in options.designs])
    # All is trained and asked: this only puts it on one page, or goes on where a part broke off.
    return subprocess.run([sys.executable, "-m", "nvlm_train", *words(options.folder, options.designs, options.seeds)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
