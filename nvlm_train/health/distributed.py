"""`nvlm doctor --distributed`: every rank reports, rank 0 tells. Each check has its time; a rank that does not answer is named."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nvlm_train import __version__
from nvlm_train.config.schema import Run
from nvlm_train.doctor import NOTE, OK, PROBLEM, Finding, listed, usable
from nvlm_train.engine.folders import as_size
from nvlm_train.health import clocks, gpus, links
from nvlm_train.health.before import examine
from nvlm_train.health.facts import Facts
from nvlm_train.health.roll import Roll, spans
from nvlm_train.health.storage import Written, checkpoint_bytes, free_bytes, needed_bytes, write_speed
from nvlm_train.parallel import groups
from nvlm_train.parallel.device import find_device
from nvlm_train.parallel.job import Job, join

LIMIT_S = 60    # for the slowest rank, at every check; collectives time out after it too


@dataclass(frozen=True)
class JobReport:
    """Of a whole job. links: all that was measured; findings: one line each, in the order of the checks."""

    ranks: tuple[Facts, ...]
    links: tuple[links.Link, ...]
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        return usable(self.findings)


def examine_job(runs: Sequence[Run]) -> JobReport:
    """Join the job and look at everything; the same report on every rank. runs: whose device, files and disk are looked at; may be empty.

    Raises ConfigError or JobError where the ranks do not even find each other, or one stops answering.
    """
    job = join(LIMIT_S)
    device = find_device(runs[0].run.device if runs else "auto")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    roll = Roll(job, LIMIT_S)
    ranks, found, offsets = examine(job, roll, runs, device)
    report = [*_versions(ranks, found), *found]
    if len(ranks) > 1:
        text, worrying = clocks.describe(offsets, ranks)
        report.append(Finding("clocks", NOTE if worrying else OK, text))
    report += _gpus(roll, ranks, device)
    if runs:
        report += _storage(roll, runs, ranks, job, device)
    measured: list[links.Link] = []
    if usable(found):     # ranks that do not fit together may hang in a collective
        groups.start(device, LIMIT_S, job)
        measured = links.measure(roll, ranks, job.place.rank, device)
        report += _links(measured)
    return JobReport(tuple(ranks), tuple(measured), tuple(report))


def _versions(ranks: Sequence[Facts], found: Sequence[Finding]) -> Iterator[Finding]:
    differing = {finding.name for finding in found}
    alike = [f"{name} {version}" for name, version in ranks[0].versions.items() if name not in differing]
    yield Finding("versions", OK, f"alike on all ranks: {'; '.join(alike)}")


def _gpus(roll: Roll, ranks: Sequence[Facts], device: torch.device) -> Iterator[Finding]:
    for rank, said in zip(ranks, roll.call("how is your GPU", gpus.remarks(device)), strict=True):
        yield from (Finding("GPU", status, f"{rank.name}: {text}") for status, text in said)


def _storage(roll: Roll, runs: Sequence[Run], ranks: Sequence[Facts], job: Job, device: torch.device) -> Iterator[Finding]:
    """The nodes write at the same time, as they do in a save."""
    run_dir = Path(runs[0].run.dir)
    writes = job.place.rank in {node[0] for node in links.nodes_of(ranks)}
    told = roll.call("write", asdict(write_speed(run_dir)) if writes else None)
    written = {rank.host: Written(**answer) for rank, answer in zip(ranks, told, strict=True) if answer is not None}
    for host, problem in ((host, one.problem) for host, one in written.items() if one.problem):
        yield Finding("storage", PROBLEM, f"{host} cannot write to {run_dir}: {problem}")
    speeds = {host: one.mb_s for host, one in written.items() if not one.problem}
    if not speeds:
        return
    slowest, together = min(speeds, key=speeds.get), sum(speeds.values())
    gpu = device.type == "cuda"
    largest = max(checkpoint_bytes(run, gpu) for run in runs)
    text = (f"{together:,.0f} MB/s, {len(speeds)} nodes writing at once; a checkpoint of {as_size(largest)} takes about "
            f"{largest / together / 1e6:,.1f} s")
    lags = len(speeds) > 1 and speeds[slowest] < links.SLOW * statistics.median(speeds.values())
    yield Finding("storage", NOTE if lags else OK, f"{text}; {slowest} is slow: {speeds[slowest]:,.0f} MB/s" if lags else text)
    free, needed = roll.call("free space", free_bytes(run_dir))[0], needed_bytes(runs, gpu)
    yield Finding("space", OK if free >= needed else PROBLEM, f"{as_size(free)} free in {run_dir}; the checkpoints that are kept need about "
                  f"{as_size(needed)}" + ("" if free >= needed else ": free some, lower run.keep_last, or choose another run.dir"))


def _links(measured: Sequence[links.Link]) -> Iterator[Finding]:
    lagging = links.slow(measured)
    for link in measured:
        if link.kind == "all-reduce":
            yield Finding("all ranks", OK, link.told)
    for kind, name in (("node all-reduce", "within nodes"), ("send", "neighbours")):
        if alike := [link for link in measured if link.kind == kind]:
            yield Finding(name, OK, f"slowest of {len(alike)}: {min(alike, key=lambda link: link.gb_s).told}")
    yield from (Finding("slow link", NOTE, f"{link.told}, less than half of the median") for link in lagging)


def as_text(report: JobReport) -> str:
    lines = [f"nvlm {__version__}, {len(report.ranks)} ranks", ""]
    for node in links.nodes_of(report.ranks):
        first = report.ranks[node[0]]
        lines.append(f"      {first.host:<20} ranks {spans(node)}, {first.gpu.split(',')[0] or 'CPU'}")
    return "\n".join([*lines, "", *listed(report.findings), "", "Fit to train." if report.usable else "Not fit to train: see the lines marked !!."])


def as_json(report: JobReport) -> str:
    return json.dumps({"version": __version__, "usable": report.usable, **asdict(report)}, indent=1, ensure_ascii=False)
