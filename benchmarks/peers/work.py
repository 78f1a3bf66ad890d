"""What every peer does to a sample, and how every contender's run is timed and told.

The peers' task encoders are made of this file and know nothing else of the project: the loader around it is their own.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from benchmarks.data_path import MAX_TILES, TILE, usual
from nvlm_train.config.schema import Data
from nvlm_train.data import chat
from nvlm_train.data.images import decode
from nvlm_train.data.records import read_record
from nvlm_train.data.tiling import Scratch, choose_grid, tile
from nvlm_train.data.tokenizer import load_tokenizer

WAYS = ("usual", "fast")


def fast() -> Callable[[bytes], torch.Tensor]:
    """Our decoding and tiling: uint8 tiles, [n, 3, P, P], in memory of their own, since they are sent on."""
    scratch = Scratch()

    def path(jpeg: bytes) -> torch.Tensor:
        pixels = decode(jpeg, scratch)
        return torch.from_numpy(tile(pixels, choose_grid(pixels.shape[1], pixels.shape[0], MAX_TILES, TILE), TILE, scratch=scratch))
    return path


def text_encoder() -> Callable[[bytes], tuple[torch.Tensor, torch.Tensor]]:
    """From a json member to token ids and which of them are learned, with the template and tokenizer that ours uses."""
    tokenizer, settings = load_tokenizer("tiny"), Data()

    def encode(record: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        ids, learned = [], []
        for segment in chat.render(read_record(record).turns, 1, settings.format, settings.system_prompt):
            if isinstance(segment, chat.Picture):
                continue
            new = [tokenizer.special(segment.token)] if isinstance(segment, chat.Special) else tokenizer.encode(segment.text)
            ids += new
            learned += [segment.learned] * len(new)
        return torch.tensor(ids), torch.tensor(learned)
    return encode


class Work:
    """One sample's members in, tensors out. Built anew in every worker process, by pickling its name only."""

    def __init__(self, way: str):
        """way: usual (Pillow, then ToTensor and Normalize for each tile) or fast (our decoding and tiling)."""
        self.way = way
        self._parts: tuple[Callable, Callable] | None = None

    def __getstate__(self) -> dict:
        return {"way": self.way, "_parts": None}

    def _built(self) -> tuple[Callable, Callable]:
        if self._parts is None:
            self._parts = text_encoder(), {"usual": usual, "fast": fast}[self.way]()
        return self._parts

    def text(self, record: bytes) -> dict[str, torch.Tensor]:
        """tokens int64 [l]; learned bool [l]."""
        return dict(zip(("tokens", "learned"), self._built()[0](record), strict=True))

    def tiles(self, jpeg: bytes) -> torch.Tensor:
        """[n, 3, 448, 448], float32 or uint8."""
        return self._built()[1](jpeg)


def cpu_seconds() -> float:
    """CPU time of this process and of its workers, those that have ended included."""
    total = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:    # it ended just now, and counts among this process's own from now on
            pass
    return total


def busy_seconds() -> float:
    """Time that the cores this process may use were busy for anyone, since they were started."""
    cores = psutil.cpu_times(percpu=True)
    return sum(sum(cores[core]) - cores[core].idle - cores[core].iowait for core in os.sched_getaffinity(0))


class Meter:
    """Counts what a loader gives, and times what it gives after the first `warm` samples.

    Says too how much other processes used the same cores meanwhile: figures are only worth much where that is little.
    """

    def __init__(self, warm: int):
        self.warm, self.samples, self.tiles, self.tokens = warm, 0, 0, 0
        self._start: tuple[float, float, float, int] | None = None

    def saw(self, samples: int, tiles: int, tokens: int) -> None:
        self.samples, self.tiles, self.tokens = self.samples + samples, self.tiles + tiles, self.tokens + tokens
        if self._start is None and self.samples >= self.warm:
            self._start = time.perf_counter(), cpu_seconds(), busy_seconds(), self.samples

    def stop(self) -> dict:
        """What was measured until now. Raises RuntimeError if there were too few samples to time."""
        if self._start is None or self.samples == self._start[-1]:
            raise RuntimeError(f"{self.samples} samples came, none after the first {self.warm}, which are not timed")
        wall, cpu, busy, before = self._start
        timed, wall, cpu, busy = self.samples - before, time.perf_counter() - wall, cpu_seconds() - cpu, busy_seconds() - busy
        return {"samples_per_s": timed / wall, "cpu_ms": cpu * 1000 / timed, "others": max(0.0, (busy - cpu) / wall), "timed": timed,
                "samples": self.samples, "tiles": self.tiles, "text_tokens": self.tokens}


def tell(measured: dict, packages: Sequence[str]) -> None:
    """Print the one line that a contender's process ends with: what was measured, and with which releases."""
    print(json.dumps({**measured, "python": platform.python_version(), "versions": {name: version(name) for name in packages}}), flush=True)


def options(description: str, ways: Sequence[str]) -> argparse.Namespace:
    """The command line of every contender."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("shards", type=Path, help="folder of shards")
    parser.add_argument("--way", choices=ways, default=ways[0])
    parser.add_argument("--workers", type=int, default=0, help="worker processes (threads of ours); 0: none")
    parser.add_argument("--warm", type=int, default=128, help="samples that pass before the clock starts")
    return parser.parse_args()
