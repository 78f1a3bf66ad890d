"""A pass: what every verb that writes shards does. A source gives samples unit by unit; each is kept, repaired, or rejected.

    OUT/UNIT.tar, UNIT.tar.index.safetensors   the samples that were kept, in order (UNIT-000000.tar ... where a unit is cut up)
    OUT/passed/UNIT.json                   what became of the unit's samples; written last, so a unit that has it is done
    OUT/passed/UNIT.rejected.jsonl         a line for each sample that was left out: key, reason, detail
    OUT/manifest.json, index.json          sums over all units, and the index; written when all are done

A unit is worked on by one process from start to end, and started again it gives the same bytes. So a pass may be interrupted
anywhere, goes on with the units that are not done, and its result does not depend on the number of processes.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Protocol, TextIO

import filelock

from data_prep.processes import results_of
from data_prep.shards import check_new_key, index_shard, refuse_repeated_keys, write_shard
from nvlm_train.contracts import Sample
from nvlm_train.data.images import image_extension
from nvlm_train.data.index import FOLDER_INDEX, ShardEntry, write_folder_index, write_json, write_shard_index
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError, SampleRefused

MANIFEST, BEGUN, PASSED = "manifest.json", "begun.json", "passed"
DETAIL = 300    # characters of a rejection's detail that are kept


@dataclass(frozen=True)
class Kept:
    """A sample that goes on. repairs: what was done to it, a short stable word each (`turned`, `text_repaired`)."""

    sample: Sample
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A sample that is left out. reason: a short stable word; detail: for a person, both numbers where there are two."""

    key: str
    reason: str
    detail: str = ""


Outcome = Kept | Rejected


class Source(Protocol):
    """Where a pass gets its samples. It is sent to other processes, so it holds settings, not open files."""

    def units(self) -> Sequence[str]:
        """Names of the parts that can be worked on alone: relative file names without a folder, all different."""

    def outcomes(self, unit: str) -> Iterator[Outcome]:
        """The samples of one unit, the same in the same order every time. Raises DataError if the unit itself cannot be read."""

    def settings(self) -> Mapping:
        """Everything that the outcomes depend on, as JSON: an interrupted pass goes on only under equal settings."""


class Judge(Protocol):
    """What a pass over shards does to one sample. A dataclass of plain settings, so that they can be compared."""

    def __call__(self, sample: Sample) -> Kept:
        """Raises SampleRefused for a sample that is left out."""


@dataclass(frozen=True)
class Judged:
    """A source: the shards of a folder, a unit each, under a judge."""

    folder: Path
    judge: Judge

    def units(self) -> list[str]:
        return units_of(self.folder)

    def outcomes(self, unit: str) -> Iterator[Outcome]:
        for key, read in samples_of(self.folder, unit):
            try:
                yield self.judge(read())
            except SampleRefused as refusal:
                yield Rejected(key, refusal.reason, refusal.detail)

    def settings(self) -> dict:
        kind = type(self.judge)
        return {"from": ShardFolder(self.folder, "").fingerprint, kind.__name__: dataclasses.asdict(self.judge)}


def units_of(folder: Path) -> list[str]:
    """Names of a folder's shards without extension, in index order. Raises DataError: no index, or a shard of another size."""
    return [Path(entry.name).stem for entry in ShardFolder(folder, "").entries]


def samples_of(folder: Path, unit: str) -> Iterator[tuple[str, Callable[[], Sample]]]:
    """Key and reader of every sample of one shard, in order. A reader raises SampleRefused if the sample cannot be used."""
    shards = ShardFolder(folder, folder.resolve().name)
    first = 0
    for entry in shards.entries:
        if Path(entry.name).stem == unit:
            for number in range(first, first + entry.samples):
                yield shards.key(number), lambda number=number: _read(shards, number)
        first += entry.samples


def _read(shards: ShardFolder, number: int) -> Sample:
    shards.image_sizes(number)      # refuses what the index knows to be unusable
    return shards.read(number)


def run_pass(verb: str, source: Source, out: Path, workers: int = 1, samples_per_shard: int | None = None,
             progress: Callable[[int, int, Mapping], None] = lambda done, units, tally: None) -> dict:
    """Take a source's samples through to shards in `out`, or go on with it. Returns the manifest.

    Manifest: verb, settings, units, in, kept, rejected (reason -> samples), repaired (repair -> samples), shards, images, bytes;
    in = kept + all rejected. samples_per_shard: None for one shard a unit. progress: told units done, units in all, sums so far.
    Raises DataError: `out` holds something else, another process works there, a unit cannot be read, nothing was kept.
    """
    settings = _settings(source, samples_per_shard)
    names = list(source.units())
    if len(set(names)) != len(names) or any(Path(name).name != name for name in names):
        raise DataError(f"{verb}: units need different plain names, there are {', '.join(names[:5])} …")
    (out / PASSED).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / PASSED / "lock")
    try:
        with lock.acquire(blocking=False):
            _begin(verb, settings, out)
            finished = {name for name in names if _done_file(out, name).is_file()}
            missing = [name for name in names if name not in finished]
            _clear(out, missing)
            sums = _tally(_read_done(out, name) for name in finished)
            progress(len(finished), len(names), sums)
            work = partial(_work, source=source, out=out, samples_per_shard=samples_per_shard)
            for done, result in enumerate(results_of(work, missing, workers, str(out)), len(finished) + 1):
                sums = _added(sums, result)
                progress(done, len(names), sums)
            return _finish(verb, settings, out, names)
    except filelock.Timeout:
        raise DataError(f"{out}: another process is working there; wait for it, or choose another folder") from None


def _settings(source: Source, samples_per_shard: int | None) -> dict:
    return json.loads(json.dumps({**source.settings(), "samples_per_shard": samples_per_shard}))    # as it will be read back


def refuse_other_work(verb: str, source: Source, out: Path, samples_per_shard: int | None = None) -> None:
    """Raises DataError if `run_pass` would, since `out` holds something else; for verbs that do much before it."""
    if out.is_dir():
        _refuse_other_work(verb, _settings(source, samples_per_shard), out)


def _begin(verb: str, settings: Mapping, out: Path) -> None:
    """Note what is done here, or refuse a folder in which something else was begun."""
    _refuse_other_work(verb, settings, out)
    if not (out / BEGUN).is_file():
        write_json(out / BEGUN, {"verb": verb, "settings": settings})


def _refuse_other_work(verb: str, settings: Mapping, out: Path) -> None:
    path = out / BEGUN
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        if begun != {"verb": verb, "settings": settings}:
            old = {"verb": begun.get("verb"), **begun.get("settings", {})}
            new = {"verb": verb, **settings}
            told = "; ".join(f"{key}: {old.get(key)} there, {new.get(key)} asked" for key in {**old, **new} if old.get(key) != new.get(key))
            raise DataError(f"{out} was begun differently ({told}). Choose another folder, or remove this one")
    elif strangers := sorted(path.name for path in out.iterdir() if path.name != PASSED):
        raise DataError(f"{out} is not empty ({strangers[0]} lies there) and was not begun by this program: choose a new folder")


def _done_file(out: Path, unit: str) -> Path:
    return out / PASSED / f"{unit}.json"


def _shard_name(unit: str, number: int | None) -> str:
    return f"{unit}.tar" if number is None else f"{unit}-{number:06d}.tar"


def _clear(out: Path, units: Sequence[str]) -> None:
    """Remove what an interrupted process left of unfinished units, and the signs that the folder was finished."""
    if units:
        for name in (FOLDER_INDEX, MANIFEST):
            (out / name).unlink(missing_ok=True)
    for unit in units:
        for path in [out / _shard_name(unit, None), *out.glob(f"{_escaped(unit)}-[0-9][0-9][0-9][0-9][0-9][0-9].tar")]:
            path.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _work(unit: str, source: Source, out: Path, samples_per_shard: int | None) -> dict:
    """Do one unit. Returns its tally, which is also what `passed/UNIT.json` holds."""
    shards = []
    # A detail may quote half of a surrogate pair, which JSON can hold and UTF-8 cannot.
    with open(out / PASSED / f"{unit}.rejected.jsonl", "w", encoding="utf-8", errors="backslashreplace") as rejections:
        tally = _Tally(rejections)
        kept = tally.kept(source.outcomes(unit))
        for number, first in enumerate(kept):
            rest = kept if samples_per_shard is None else islice(kept, samples_per_shard - 1)
            path = out / _shard_name(unit, None if samples_per_shard is None else number)
            write_shard(path, chain([first], rest))
            entry, index = index_shard(path)
            write_shard_index(out, entry, index)
            shards.append({**dataclasses.asdict(entry), "images": len(index.images)})
    result = {"in": tally.taken, "kept": tally.taken - sum(tally.rejected.values()), "rejected": dict(sorted(tally.rejected.items())),
              "repaired": dict(sorted(tally.repaired.items())), "shards": shards}
    write_json(_done_file(out, unit), result)
    return result


class _Tally:
    """Counts outcomes on their way, and writes down the rejected ones."""

    def __init__(self, rejections: TextIO) -> None:
        self.taken, self.rejected, self.repaired = 0, Counter(), Counter()
        self._keys: set[str] = set()
        self._file = rejections

    def kept(self, outcomes: Iterable[Outcome]) -> Iterator[Sample]:
        for outcome in outcomes:
            self.taken += 1
            if isinstance(outcome, Kept):
                try:
                    self._refuse_unwritable(outcome.sample)
                except SampleRefused as refusal:
                    outcome = Rejected(outcome.sample.key, refusal.reason, refusal.detail)
            if isinstance(outcome, Kept):
                self._keys.add(outcome.sample.key)
                self.repaired.update(outcome.repairs)
                yield outcome.sample
            else:
                self.rejected[outcome.reason] += 1
                line = {"key": outcome.key, "reason": outcome.reason, "detail": outcome.detail[:DETAIL]}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _refuse_unwritable(self, sample: Sample) -> None:
        """What no shard can hold. Raises SampleRefused: bad_key, repeated_key, broken_image, image_too_large."""
        try:
            check_new_key(sample.key)
        except DataError as error:
            raise SampleRefused("bad_key", str(error)) from error
        if sample.key in self._keys:
            raise SampleRefused("repeated_key", f"an earlier sample is called {sample.key} too")
        for image in sample.images:
            image_extension(image)


def _read_done(out: Path, unit: str) -> dict:
    return json.loads(_done_file(out, unit).read_text(encoding="utf-8"))


def _tally(results: Iterable[Mapping]) -> dict:
    sums = {"in": 0, "kept": 0, "rejected": {}, "repaired": {}}
    for result in results:
        sums = _added(sums, result)
    return sums


def _added(sums: Mapping, result: Mapping) -> dict:
    return {"in": sums["in"] + result["in"], "kept": sums["kept"] + result["kept"],
            **{key: dict(sorted((Counter(sums[key]) + Counter(result[key])).items())) for key in ("rejected", "repaired")}}


def _finish(verb: str, settings: Mapping, out: Path, units: Sequence[str]) -> dict:
    results = [_read_done(out, unit) for unit in units]
    sums, shards = _tally(results), [shard for result in results for shard in result["shards"]]
    if not shards:
        told = ", ".join(f"{count:,} {reason}" for reason, count in sums["rejected"].items()) or "there were none"
        raise DataError(f"{verb}: no sample was kept ({told}). See {out / PASSED}")
    entries = [ShardEntry(shard["name"], shard["size"], shard["sha256"], shard["samples"]) for shard in shards]
    refuse_repeated_keys(out, entries)
    manifest = {"verb": verb, "settings": settings, "units": len(units), **sums, "shards": len(shards),
                "images": sum(shard["images"] for shard in shards), "bytes": sum(shard["size"] for shard in shards)}
    if manifest["in"] != manifest["kept"] + sum(manifest["rejected"].values()) or manifest["kept"] != sum(e.samples for e in entries):
        raise DataError(f"{out}: counts do not add up ({manifest}). Remove {out / PASSED} and start again")
    write_json(out / MANIFEST, manifest)
    write_folder_index(out, entries)    # last: a folder without it is refused by everything that reads shards
    return manifest
