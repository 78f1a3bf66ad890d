"""Verb `dedup`: of samples that say the same, the one with the longest answers stays."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.command import existing_folder, parser_of, show_pass, watch
from data_prep.curate.duplicates import Duplicates, Found, find_duplicates
from data_prep.curate.extra import require
from data_prep.curate.files import Sifted, beside, write_verdicts
from data_prep.curate.options import add_options, from_options
from data_prep.curate.signatures import Method, read_signatures, signatures_writer
from data_prep.passes import refuse_other_work, units_of
from data_prep.processes import results_of
from nvlm_train.data.index import write_json
from nvlm_train.errors import DataError

REPORT = "report.json"


def dedup(source: Path, out: Path, limits: Duplicates, workers: int = 1, method: Method | None = None,
          console: Console | None = None) -> dict:
    """Leave out duplicates. Returns the manifest of the pass; the curves are in OUT.dedup/report.json.

    Signatures are made shard by shard and kept in OUT.dedup; clusters are found once over all of them; then shards are written.
    Raises DataError as `run_pass`, or if a package of the `data` extra is missing.
    """
    require("dedup", "datasketch", "imagehash", "scipy")
    console, method = console or Console(highlight=False, soft_wrap=True), method or Method()
    folder, units = beside(out, "dedup"), units_of(source)
    sifted = Sifted(source, folder / "verdicts", {"Duplicates": asdict(limits), "Method": asdict(method)})
    refuse_other_work("dedup", sifted, out)     # before its report is overwritten
    cache = folder / "signatures"
    cache.mkdir(exist_ok=True)
    written = results_of(signatures_writer(source, cache, method), units, workers, str(cache))
    watch(written, len(units), "dedup: signatures", console)
    found = find_duplicates(read_signatures(units, cache), limits, method)
    write_verdicts(sifted.verdicts, found.verdicts)
    write_json(folder / REPORT, {**found.report, "limits": asdict(limits), "method": asdict(method)})
    manifest = show_pass("dedup", sifted, out, workers, console=console)
    console.print(*_told(found, limits), f"  report: {folder / REPORT}", sep="\n")
    return manifest


def _told(found: Found, limits: Duplicates) -> list[Table | str]:
    """The curves, for a person: where a threshold stands in them says more than what it removes."""
    texts = Table("Jaccard at least", "pairs", "chance to be found", title="pairs of different samples whose pictures are alike")
    for point in found.report["jaccard_curve"]:
        texts.add_row(_marked(point["jaccard"], limits.jaccard), f"{point['pairs']:,}", f"{point['chance']:.1%}")
    pictures = Table("bits at most", "pairs", title=f"pairs of {found.report['pictures']:,} pictures")
    for point in found.report["hamming_curve"]:
        pictures.add_row(_marked(point["bits"], limits.hamming), f"{point['pairs']:,}")
    counts = f"  {found.report['clusters']:,} clusters, {found.report['candidates']:,} pairs compared"
    told: list[Table | str] = [counts, texts, pictures]
    if found.report["not_compared"]:
        told.append(f"  {found.report['not_compared']:,} pairs stood in crowded buckets and were not compared")
    return told


def _marked(value: float, threshold: float) -> str:
    return f"{value:g} <-" if value == threshold else f"{value:g}"


def main(arguments: list[str]) -> int:
    """`python -m data_prep dedup IN OUT ...`"""
    parser = parser_of("dedup", __doc__)
    add_options(parser, Duplicates)
    options = parser.parse_args(arguments)
    limits = from_options(Duplicates, options)
    if not 0 < limits.jaccard <= 1 or not 0 <= limits.hamming <= 16:
        raise DataError(f"--jaccard {limits.jaccard:g} lies between 0 and 1, --hamming {limits.hamming} between 0 and 16")
    dedup(existing_folder(options.source, "dedup"), options.out, limits, options.workers)
    return 0
