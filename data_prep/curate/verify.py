"""Verb `verify`: shards and samples against their hashes, and counts along a chain of passes: in = kept + rejected."""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from data_prep.command import positive
from data_prep.passes import MANIFEST, PASSED, units_of
from data_prep.processes import results_of
from nvlm_train.data.index import read_folder_index, read_shard_index
from nvlm_train.data.shards import ShardFolder, file_sha256
from nvlm_train.errors import NvlmError, SampleRefused

SHOWN = 20      # lines that are printed of a folder's problems


@dataclass
class Verified:
    """What was found of one folder. problems: one line each, empty if all is as it was written; refused: by the index, known."""

    folder: Path
    samples: int = 0
    shards: int = 0
    refused: int = 0
    manifest: Mapping | None = None
    fingerprint: str = ""
    problems: list[str] = field(default_factory=list)


def verify(folders: Sequence[Path], chain: bool = False, workers: int = 1) -> list[Verified]:
    """Read everything and compare. chain: each folder must have been made from the one before it. Nothing raises; see `problems`."""
    found = [verify_folder(folder, workers) for folder in folders]
    by_fingerprint = {one.fingerprint: one for one in found if one.fingerprint}
    for one in found:
        sources = _sources(one.manifest)
        if one.manifest and sources and all(source in by_fingerprint for source in sources):
            given = sum(by_fingerprint[source].samples for source in sources)
            if given != one.manifest["in"]:
                one.problems.append(f"{one.folder}: the pass took in {one.manifest['in']:,} samples, and the folders that it was "
                                    f"made from hold {given:,}")
    if chain:
        for before, after in pairwise(found):
            if before.fingerprint not in _sources(after.manifest):
                after.problems.append(f"{after.folder} was not made from {before.folder} as it is now: its manifest names other "
                                      "shards, or it has none")
    return found


def verify_folder(folder: Path, workers: int = 1) -> Verified:
    """One folder alone: hashes of shards and samples, then the counts of its pass if there was one."""
    found = Verified(folder)
    try:
        units = units_of(folder)
        shards = ShardFolder(folder, "")
        found.samples, found.shards, found.fingerprint = len(shards), len(units), shards.fingerprint
        # In index order, whoever finishes first.
        for _, refused, problems in sorted(results_of(partial(_verify_shard, folder=folder), range(len(units)), workers, str(folder))):
            found.refused += refused
            found.problems += problems
        if (folder / MANIFEST).is_file():
            found.manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            found.problems += _count_problems(folder, found.manifest)
    except (NvlmError, OSError, ValueError, KeyError, TypeError) as error:
        found.problems.append(str(error) if isinstance(error, NvlmError) else f"{folder}: {type(error).__name__}: {error}")
    return found


def _verify_shard(number: int, folder: Path) -> tuple[int, int, list[str]]:
    """Number of the shard, samples that its index refuses, problems."""
    entry = read_folder_index(folder)[number]
    problems = []
    if (digest := file_sha256(folder / entry.name)) != entry.sha256:
        problems.append(f"{folder / entry.name}: SHA-256 is {digest}, the index says {entry.sha256}")
    shards = ShardFolder(folder, "")
    first = shards.first(number)
    refused = read_shard_index(folder, entry).refused
    for place in range(entry.samples):
        try:
            if place not in refused:
                shards.read(first + place)
        except SampleRefused as refusal:
            problems.append(str(refusal))
    return number, len(refused), problems


def _count_problems(folder: Path, manifest: Mapping) -> list[str]:
    """The manifest against itself, the units' tallies, the lists of rejected samples, and the shards."""
    entries = read_folder_index(folder)
    rejected = Counter(manifest["rejected"])
    tallies = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / PASSED).glob("*.json"))]
    listed: Counter[str] = Counter()
    for path in sorted((folder / PASSED).glob("*.rejected.jsonl")):
        listed.update(json.loads(line)["reason"] for line in path.read_text(encoding="utf-8").split("\n") if line)
    by_units = sum((Counter(tally["rejected"]) for tally in tallies), Counter())
    compared = [
        ("samples taken in, and kept + rejected", manifest["in"], manifest["kept"] + rejected.total()),
        ("samples kept, and in the shards", manifest["kept"], sum(entry.samples for entry in entries)),
        ("shards in the manifest, and in the index", manifest["shards"], len(entries)),
        ("bytes in the manifest, and in the index", manifest["bytes"], sum(entry.size for entry in entries)),
        ("units in the manifest, and done", manifest["units"], len(tallies)),
        ("samples taken in, and by the units", manifest["in"], sum(tally["in"] for tally in tallies)),
        ("rejected samples by reason, and by the units", dict(rejected), dict(by_units)),
        ("rejected samples by reason, and as listed", dict(rejected), dict(listed)),
    ]
    return [f"{folder}: {what} differ: {one} and {other}" for what, one, other in compared if one != other]


def _sources(manifest: Mapping | None) -> list[str]:
    source = (manifest or {}).get("settings", {}).get("from", [])
    return [source] if isinstance(source, str) else list(source)


def told(one: Verified) -> list[str]:
    """For a person."""
    state = "as written" if not one.problems else f"{len(one.problems):,} problems"
    counts = f"{one.shards:,} shards, {one.samples:,} samples"
    if one.refused:
        counts += f" ({one.refused:,} that the index refuses)"
    if one.manifest:
        rejected = sum(one.manifest["rejected"].values())
        counts += f"; {one.manifest['verb']}: {one.manifest['in']:,} in = {one.manifest['kept']:,} kept + {rejected:,} rejected"
    lines = [f"{one.folder}: {state}; {counts}", *(f"  {problem}" for problem in one.problems[:SHOWN])]
    return lines + ([f"  and {len(one.problems) - SHOWN:,} more"] if len(one.problems) > SHOWN else [])


def main(arguments: list[str]) -> int:
    """`python -m data_prep verify FOLDER ...`: 0 if everything is as it was written, else 1."""
    parser = argparse.ArgumentParser(prog="python -m data_prep verify", description=__doc__)
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+")
    parser.add_argument("--chain", action="store_true", help="each folder must have been made from the one before it")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default %(default)s)")
    options = parser.parse_args(arguments)
    found = verify(options.folders, options.chain, options.workers)
    for one in found:
        print(*told(one), sep="\n")
    return 1 if any(one.problems for one in found) else 0
