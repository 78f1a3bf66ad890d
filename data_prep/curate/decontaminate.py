"""Verb `decontaminate`: what stands in a benchmark is left out of the training data; the benchmark stays as it is."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from data_prep.command import existing_folder, parser_of, show_pass, watch
from data_prep.curate.benchmark_index import Overlap, build_index, digest_of, save_index
from data_prep.curate.extra import require
from data_prep.curate.files import Sifted, beside, write_verdicts
from data_prep.curate.match_page import write_page
from data_prep.curate.options import add_options, from_options
from data_prep.curate.overlaps import scan
from data_prep.passes import refuse_other_work, units_of
from data_prep.processes import results_of
from nvlm_train.data.index import write_json
from nvlm_train.errors import DataError

MATCHES, REPORT, PAGE = "matches.jsonl", "report.json", "matches.html"
_GRAVEST_FIRST = ("benchmark_pair", "benchmark_text", "benchmark_image")


def decontaminate(source: Path, out: Path, against: Sequence[Path], limits: Overlap, workers: int = 1,
                  console: Console | None = None) -> dict:
    """Leave out what benchmarks hold. Returns the manifest of the pass.

    OUT.decontaminate gets every match (matches.jsonl), counts (report.json) and a page with the pairs of pictures (matches.html).
    Raises DataError: a benchmark cannot be read, packages of the `data` extra are missing; and as `run_pass`.
    """
    require("decontaminate", "imagehash")
    console = console or Console(highlight=False, soft_wrap=True)
    folder, units = beside(out, "decontaminate"), units_of(source)
    index = build_index(against, limits)
    digest = digest_of(index)
    sifted = Sifted(source, folder / "verdicts", {"Overlap": asdict(limits), "benchmarks": digest})
    refuse_other_work("decontaminate", sifted, out)     # before its reports are overwritten
    save_index(index, folder / "benchmarks.npz")
    cache = folder / "matches"
    cache.mkdir(exist_ok=True)
    work = partial(scan, folder=source, index_path=folder / "benchmarks.npz", digest=digest, limits=limits, cache=cache)
    watch(results_of(work, units, workers, str(cache)), len(units), "decontaminate: scanned", console)
    matches, verdicts = _judged(units, cache, limits)
    write_verdicts(sifted.verdicts, verdicts)
    (folder / MATCHES).write_text("".join(json.dumps(match, ensure_ascii=False) + "\n" for match in matches), encoding="utf-8")
    report = {"benchmarks": index.told, "matches": dict(sorted(Counter(match["reason"] for match in matches).items())),
              "samples_matched": len({match["key"] for match in matches}), "limits": asdict(limits)}
    write_json(folder / REPORT, report)
    write_page(folder / PAGE, matches, source, index.folders)
    manifest = show_pass("decontaminate", sifted, out, workers, console=console)
    where = f"  every match: {folder / MATCHES}, with pictures: {folder / PAGE}"
    console.print(*_told(report, len(against)), where, sep="\n", markup=False)
    return manifest


def _judged(units: Sequence[str], cache: Path, limits: Overlap) -> tuple[list[dict], dict[str, dict[str, tuple[str, str]]]]:
    """All matches with their shard; and of each sample that goes, the gravest."""
    matches, verdicts = [], {}
    for unit in units:
        found = json.loads((cache / f"{unit}.json").read_text(encoding="utf-8"))
        verdicts[unit] = {key: tuple(told) for key, told in found["refused"].items()}
        for match in sorted(found["matches"], key=lambda match: _GRAVEST_FIRST.index(match["reason"])):
            matches.append({"shard": unit, **match})
            if limits.images == "reject" or match["reason"] != "benchmark_image":
                verdicts[unit].setdefault(match["key"], (match["reason"], _detail(match)))
    return matches, verdicts


def _detail(match: dict) -> str:
    name = f"{match['benchmark']}/{match['item']}"
    if "share" in match:
        return f"{name}: {match['share']:.0%} of its runs of words"
    return f"{name}: picture {match['image']} differs in {match['bits']} of 64 bits"


def _told(report: dict, benchmarks: int) -> list[str]:
    counts = report["benchmarks"]
    read = f"{benchmarks} benchmarks: {counts['items']:,} entries, {counts['pictures']:,} pictures"
    notes = {"absent_pictures": "pictures that entries name are not in the folder", "broken_pictures": "pictures cannot be decoded",
             "unreadable_items": "entries cannot be read", "common_runs": "runs of words are in too many entries to count",
             "cannot_be_matched": "entries have no picture and too few words (or common ones) to be found"}
    lines = [f"  {counts[name]:,} {told}" for name, told in notes.items() if counts[name]]
    return [f"  {read}; {report['samples_matched']:,} samples match", *lines]


def main(arguments: list[str]) -> int:
    """`python -m data_prep decontaminate IN OUT --against FOLDER ...`"""
    parser = parser_of("decontaminate", __doc__)
    parser.add_argument("--against", metavar="FOLDER", type=Path, nargs="+", required=True,
                        help="benchmarks: folders of indexed shards, or of pictures and questions (jsonl, json, csv, tsv, txt)")
    add_options(parser, Overlap)
    options = parser.parse_args(arguments)
    limits = from_options(Overlap, options)
    if not 0 <= limits.hamming <= 16 or not 0 <= limits.share <= 1:
        raise DataError(f"--hamming {limits.hamming} lies between 0 and 16, --share {limits.share:g} between 0 and 1")
    decontaminate(existing_folder(options.source, "decontaminate"), options.out, options.against, limits, options.workers)
    return 0
