"""Files beside a pass's result: work that can be gone on with, verdicts on samples, and reports."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.passes import Kept, Outcome, Rejected, samples_of, units_of
from nvlm_train.data.index import write_json
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import SampleRefused


def beside(out: Path, verb: str) -> Path:
    """OUT.VERB, the folder for what a verb needs and tells beyond the shards of OUT. Made if need be."""
    out = out.resolve()
    folder = out.with_name(f"{out.name}.{verb}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_verdicts(folder: Path, verdicts: Mapping[str, Mapping[str, tuple[str, str]]]) -> None:
    """verdicts: unit -> key -> (reason, detail) of the samples to leave out; every unit is named."""
    folder.mkdir(parents=True, exist_ok=True)
    for unit, of_keys in verdicts.items():
        write_json(folder / f"{unit}.json", {key: list(told) for key, told in of_keys.items()})


@dataclass(frozen=True)
class Sifted:
    """A source: the shards of a folder without the samples that `verdicts` names. how: the settings that made the verdicts."""

    folder: Path
    verdicts: Path
    how: Mapping

    def units(self) -> list[str]:
        return units_of(self.folder)

    def outcomes(self, unit: str) -> Iterator[Outcome]:
        verdicts = json.loads((self.verdicts / f"{unit}.json").read_text(encoding="utf-8"))
        for key, read in samples_of(self.folder, unit):
            if key in verdicts:
                yield Rejected(key, *verdicts[key])
                continue
            try:
                yield Kept(read())
            except SampleRefused as refusal:
                yield Rejected(key, refusal.reason, refusal.detail)

    def settings(self) -> dict:
        return {"from": ShardFolder(self.folder, "").fingerprint, **self.how}
