"""Run under torchrun by test_checkpoint_ranks.py: saves a table that is sharded over the ranks, with one fault.

    checkpoint_ranks.py FOLDER kill     dies while saving step 2
    checkpoint_ranks.py FOLDER soft     a good load, a save that fails on one rank, a damaged file; goes on after each

What a rank has to say is in FOLDER-RANK.json.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from checkpoint_toys import FINGERPRINT, Collectives, facts

from nvlm_train.engine.checkpoint import CheckpointStore, load
from nvlm_train.engine.sharded_write import ShardedWrite
from nvlm_train.errors import CheckpointError, TrainingError


class SplitEngine(Collectives):
    """One matrix, split by rows over the ranks; and a vector that every rank holds."""

    def __init__(self, value: float, rows: int = 1024):
        self.split, self.copied = torch.full((rows, 256), value + dist.get_rank()), torch.full((rows,), value)

    def sharded_state(self, loading: bool, optimizer: bool = True) -> dict:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        return {"model": {"split": ShardedTensor.from_rank_offsets("split", self.split, (0, rank, ranks)),
                          "copied": ShardedTensor.from_rank_offsets("copied", self.copied, replica_id=rank)}}

    def load_state(self, state: dict) -> None:
        self.split, self.copied = state["model"]["split"], state["model"]["copied"]


def kill_while_writing() -> None:
    """The next write of rank 1 ends with SIGKILL, its file on the disk and the others' too."""
    write = ShardedWrite.write

    def write_and_die(self):
        write(self)
        dist.barrier()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    ShardedWrite.write = write_and_die


def save_with_a_limit(store: CheckpointStore) -> None:
    """Rank 1 may only write files of 256 KiB; its part has 1 MiB."""
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY))
    store.save(SplitEngine(20.0), facts(cursor=2), 2, asynchronous=True)
    store.finish()


def load_damaged(store: CheckpointStore) -> None:
    """One bit of rank 1's file is flipped."""
    if dist.get_rank() == 0:
        path = max(store.latest().glob("__1_*"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    dist.barrier()
    load(store.latest(), SplitEngine(0.0), FINGERPRINT)


def main(folder: Path, kind: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    store = CheckpointStore(folder, keep_last=3)
    store.save(SplitEngine(10.0), facts(cursor=1), 1)
    if kind == "kill":
        kill_while_writing()
        store.save(SplitEngine(20.0), facts(cursor=2), 2, asynchronous=True)
        store.finish()
    engine = SplitEngine(0.0)
    load(store.latest(), engine, FINGERPRINT)
    said = {"right": bool((engine.split == 10.0 + rank).all() and (engine.copied == 10.0).all()), "steps": store.steps(),
            "sizes": [path.stat().st_size for path in sorted(store.latest().glob("*.distcp"))]}
    for fault in (save_with_a_limit, load_damaged):
        try:
            fault(store)
        except (CheckpointError, TrainingError) as problem:
            said[fault.__name__] = [str(problem), sorted(os.listdir(folder))]
        dist.barrier()
    Path(f"{folder}-{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
