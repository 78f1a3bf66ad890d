"""What differs between the ranks of a job, and whether it can work. Pure functions over the ranks' facts, the same on every rank."""

from collections.abc import Iterator, Sequence

from nvlm_train.doctor import NOTE, PROBLEM, Finding
from nvlm_train.health.facts import Facts
from nvlm_train.health.roll import named, spans

# Ranks of different code compute different things and call different collectives; of different NCCL they do not talk.
MUST_AGREE = ("nvlm_train", "torch", "megatron-core", "CUDA of torch", "NCCL")


def compare(ranks: Sequence[Facts]) -> list[Finding]:
    """Everything wrong or remarkable about these ranks together; nothing if they fit."""
    return [*_worlds(ranks), *_versions(ranks), *_gpus(ranks), *_environments(ranks)]


def grouped(ranks: Sequence[Facts], values: Sequence[str]) -> dict[str, list[Facts]]:
    """The ranks by their value, the commonest value first."""
    found: dict[str, list[Facts]] = {}
    for rank, value in zip(ranks, values, strict=True):
        found.setdefault(value, []).append(rank)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def told(found: dict[str, list[Facts]]) -> str:
    """`2.13.0 on node-a (ranks 0-7), 2.12.1 on node-b (ranks 8-15)`."""
    return ", ".join(f"{value or 'not set'} on {_hosts(ranks)} ({named(rank.rank for rank in ranks)})" for value, ranks in found.items())


def _hosts(ranks: Sequence[Facts]) -> str:
    hosts = list(dict.fromkeys(rank.host for rank in ranks))
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more nodes" if len(hosts) > 3 else "")


def _worlds(ranks: Sequence[Facts]) -> Iterator[Finding]:
    for place, rank in enumerate(ranks):
        if rank.rank != place:
            yield Finding("ranks", PROBLEM, f"process {rank.pid} on {rank.host} answers as rank {place} and believes to be rank {rank.rank}")
    if len(found := grouped(ranks, [str(rank.world) for rank in ranks])) > 1:
        yield Finding("ranks", PROBLEM, f"WORLD_SIZE differs: {told(found)}. Start all processes with one launcher")


def _versions(ranks: Sequence[Facts]) -> Iterator[Finding]:
    for name in dict.fromkeys(name for rank in ranks for name in rank.versions):
        if len(found := grouped(ranks, [rank.versions.get(name, "none") for rank in ranks])) > 1:
            must = name in MUST_AGREE
            yield Finding(name, PROBLEM if must else NOTE,
                          f"differs: {told(found)}" + (". Install the same on every node, or leave the odd one out" if must else ""))


def _gpus(ranks: Sequence[Facts]) -> Iterator[Finding]:
    using = [rank for rank in ranks if rank.gpu]
    shared = grouped(using, [f"{rank.host}\0{rank.gpu}" for rank in using])
    for where, sharers in shared.items():
        if len(sharers) > 1:
            host, _, gpu = where.partition("\0")
            yield Finding("GPU", PROBLEM, f"ranks {spans([rank.rank for rank in sharers])} share one GPU of {host} ({gpu}): start one "
                                          "process for each GPU, and give srun's tasks different GPUs")
    models = grouped(ranks, [rank.gpu.split(",")[0] or "CPU" for rank in ranks])
    if len(models) > 1:
        without = "CPU" in models
        yield Finding("GPU", PROBLEM if without else NOTE, f"differs: {told(models)}" + (
            ". Every rank needs a GPU, or none has one" if without else ". The slowest sets the pace"))


def _environments(ranks: Sequence[Facts]) -> Iterator[Finding]:
    for name in sorted({name for rank in ranks for name in rank.environment}):
        if len(found := grouped(ranks, [rank.environment.get(name, "") for rank in ranks])) > 1:
            yield Finding(name, NOTE, f"differs: {told(found)}")
