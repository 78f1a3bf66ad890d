"""Looks for benchmarks in a shard of training data: shared runs of words, shared pictures, and questions asked about them."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_prep.curate.benchmark_index import BenchmarkIndex, Overlap, load_index
from data_prep.curate.picture_hash import picture_hashes
from data_prep.curate.similar import near_between
from data_prep.curate.words import gram_hashes, words_of
from data_prep.passes import samples_of
from nvlm_train.contracts import Sample
from nvlm_train.data.index import write_json
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import SampleRefused

VERSION = 1     # of the files
SHOWN = 3       # entries told of a sample's texts, those with the largest share first


def scan(unit: str, folder: Path, index_path: Path, digest: str, limits: Overlap, cache: Path) -> None:
    """Matches of one shard's samples to cache/UNIT.json, unless they are there already.

    A match: key, sample (number in its folder), reason, benchmark, item, and by reason: share, text (benchmark_text); bits, image,
    item_image (benchmark_image); both without share, and question (benchmark_pair).
    """
    entry_sha = next(entry.sha256 for entry in ShardFolder(folder, "").entries if Path(entry.name).stem == unit)
    made_from = {"version": VERSION, "sha256": entry_sha, "benchmarks": digest, **asdict(limits)}
    path = cache / f"{unit}.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["made_from"] == made_from:
        return
    index = load_index(index_path, digest)
    matches, refused, seen = [], {}, _Seen()
    for key, read in samples_of(folder, unit):
        try:
            sample = read()
            hashes = [picture_hashes(image) for image in sample.images]
        except SampleRefused as refusal:
            refused[key] = [refusal.reason, refusal.detail]
            continue
        matches += _text_matches(sample, index, limits)
        seen.add(sample, hashes)
    matches += seen.matches(index, limits)
    write_json(path, {"made_from": made_from, "refused": refused, "matches": sorted(matches, key=lambda match: match["key"])})


def _text_matches(sample: Sample, index: BenchmarkIndex, limits: Overlap) -> list[dict]:
    """Entries whose runs of words the sample holds. A run never crosses from one turn into the next."""
    turns = [words_of(turn.text) for turn in sample.turns if turn.role != "system"]
    shared: defaultdict[int, int] = defaultdict(int)
    for size, (grams, items) in index.grams.items():
        found = np.unique(np.concatenate([gram_hashes(words, size) for words in turns] or [grams[:0]]))
        first, last = np.searchsorted(grams, found, "left"), np.searchsorted(grams, found, "right")
        for place in np.flatnonzero(first < last):
            for item in items[first[place]:last[place]].tolist():
                shared[item] += 1
    shares = {item: count / int(index.gram_count[item]) for item, count in shared.items()}
    best = sorted((item for item in shares if shares[item] >= limits.share), key=lambda item: (-shares[item], item))[:SHOWN]
    return [{"key": sample.key, "reason": "benchmark_text", **_named(index, item), "share": round(shares[item], 4),
             "text": " ".join(index.items[item].texts)[:300]} for item in best]


class _Seen:
    """Pictures of a shard's samples, with the questions asked about them."""

    def __init__(self) -> None:
        self._hashes: list[int] = []
        self._at: list[tuple[int, int]] = []        # sample, place of the picture in it
        self._asked: list[tuple[str, list[str]]] = []     # key, words of each user turn

    def add(self, sample: Sample, hashes: Sequence[tuple[int, int]]) -> None:
        for place, of_picture in enumerate(hashes):
            self._hashes += of_picture
            self._at += [(len(self._asked), place)] * len(of_picture)
        self._asked.append((sample.key, [" ".join(words_of(turn.text)) for turn in sample.turns if turn.role == "user"]))

    def matches(self, index: BenchmarkIndex, limits: Overlap) -> list[dict]:
        """One for each picture of a sample and entry that has one like it."""
        nearest: dict[tuple[int, int, int, int], int] = {}
        i, j, bits = near_between(np.array(self._hashes, dtype=np.uint64), index.pictures, limits.hamming)
        for mine, theirs, distance in zip(i.tolist(), j.tolist(), bits.tolist(), strict=True):
            pair = (*self._at[mine], *index.picture_at[theirs].tolist())
            nearest[pair] = min(distance, nearest.get(pair, 64))
        return [self._match(pair, distance, index) for pair, distance in sorted(nearest.items())]

    def _match(self, pair: tuple[int, int, int, int], bits: int, index: BenchmarkIndex) -> dict:
        sample, place, item, item_place = pair
        key, asked = self._asked[sample]
        question = index.questions[item]
        is_asked = bool(question) and any(f" {question} " in f" {words} " for words in asked)
        match = {"key": key, "reason": "benchmark_pair" if is_asked else "benchmark_image", **_named(index, item), "bits": bits,
                 "image": place, "item_image": index.items[item].pictures[item_place]}
        return {**match, "question": index.items[item].question[:300]} if is_asked else match


def _named(index: BenchmarkIndex, item: int) -> Mapping[str, str]:
    return {"benchmark": index.items[item].benchmark, "item": index.items[item].name}
