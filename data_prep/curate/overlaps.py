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
SHOWN = 3       # entries told of a sample's texts, and of its pictures: the worst ones


def scan(unit: str, folder: Path, index_path: Path, digest: str, limits: Overlap, cache: Path) -> None:
    """Matches of one shard's samples to cache/UNIT.json, unless they are there already.

    A match: key, reason, benchmark, item; for benchmark_text also share and text; for benchmark_image also bits, image (place in the
    sample) and item_image; for benchmark_pair the same and question.
    """
    entry_sha = next(entry.sha256 for entry in ShardFolder(folder, "").entries if Path(entry.name).stem == unit)
    how = {name: value for name, value in asdict(limits).items() if name != "images"}     # which judges matches, and finds none
    made_from = {"version": VERSION, "sha256": entry_sha, "benchmarks": digest, **how}
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

    def add(self, sample: Sample, hashes: Sequence[Sequence[int]]) -> None:
        for place, of_picture in enumerate(hashes):
            self._hashes += of_picture
            self._at += [(len(self._asked), place)] * len(of_picture)
        self._asked.append((sample.key, [" ".join(words_of(turn.text)) for turn in sample.turns if turn.role == "user"]))

    def matches(self, index: BenchmarkIndex, limits: Overlap) -> list[dict]:
        """Entries that have a picture like one of a sample's: a few of each sample, those that ask the same first, then the nearest."""
        mine, of_mine = np.unique(np.array(self._hashes, dtype=np.uint64), return_inverse=True)
        theirs, first = np.unique(index.pictures, return_index=True)
        last = np.append(first[1:], len(index.pictures))
        near: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for i, j, bits in zip(*(part.tolist() for part in near_between(mine, theirs, limits.hamming)), strict=True):
            near[i].append((j, bits))
        nearest: defaultdict[int, dict[tuple[int, int, int], int]] = defaultdict(dict)
        for number, (sample, place) in zip(of_mine.tolist(), self._at, strict=True):
            for hash_number, bits in near[number]:
                for item, item_place in index.picture_at[first[hash_number]:last[hash_number]].tolist():
                    pair = (place, item, item_place)
                    nearest[sample][pair] = min(bits, nearest[sample].get(pair, bits))
        found = []
        for sample, pairs in sorted(nearest.items()):
            matches = [self._match((sample, *pair), bits, index) for pair, bits in sorted(pairs.items())]
            found += sorted(matches, key=lambda match: (match["reason"] != "benchmark_pair", match["bits"]))[:SHOWN]
        return found

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
