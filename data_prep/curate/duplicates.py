"""Which samples say the same: equal ones first, then those that are nearly equal, and of each cluster the one that is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_prep.curate.options import limit
from data_prep.curate.signatures import Method, Signatures
from data_prep.curate.similar import bucket_pairs, clusters_of, near_hashes, pairs_in_buckets
from data_prep.curate.words import jaccard

JACCARDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(11))
WINDOW = 100    # neighbours that a sample is compared with in one bucket; a bucket of n then costs 100 n and not n * n
_SPREAD = np.uint64(0x9E3779B97F4A7C15)     # odd, so that group numbers stay different when multiplied


@dataclass(frozen=True)
class Duplicates:
    """When two samples are one. Defaults: NeMo Curator's Jaccard; four bits of pHash are recompression and resizing."""

    match: str = limit("sample", "sample: pictures and text are alike; images: pictures alone, where there are any",
                       choices=("sample", "images"))
    jaccard: float = limit(0.8, "smallest share of word 5-grams that two texts have in common", metavar="SHARE")
    hamming: int = limit(4, "most bits of 64 in which two pictures' hashes differ", metavar="BITS")


@dataclass(frozen=True)
class Found:
    """verdicts: unit -> key -> (reason, detail) of samples to leave out. report: counts and curves, as JSON."""

    verdicts: dict[str, dict[str, tuple[str, str]]]
    report: dict


def find_duplicates(table: Signatures, limits: Duplicates, method: Method) -> Found:
    """Clusters over all samples; each keeps the sample with the longest answers, the first of several.

    Samples are linked if one is like another, so the ends of a chain may differ more than the limits say.
    """
    usable = np.array([number not in table.refused for number in range(len(table))], dtype=bool)
    identical = _identical(table, limits)
    _, first = np.unique(identical[usable], return_index=True)
    representatives = np.flatnonzero(usable)[np.sort(first)]

    picture_group, hamming_curve = _picture_groups(table, limits.hamming)
    i, j, crowded = _candidates(table, representatives, picture_group, limits)
    alike, similarity = _verified(table, i, j, limits)
    linked = similarity >= limits.jaccard if limits.match == "sample" else _images_decide(table, i[alike], similarity, limits)
    near_i, near_j = i[alike][linked], j[alike][linked]

    nodes = np.concatenate([np.flatnonzero(usable), near_i])
    ends = np.concatenate([_first_of_each(identical, usable), near_j])
    cluster = clusters_of(len(table), nodes, ends)
    verdicts, counts = _verdicts(table, usable, identical, cluster)
    curve = [{"jaccard": least, "pairs": int((similarity >= least).sum()), "chance": round(method.chance(least), 6)}
             for least in JACCARDS]
    report = {"samples": len(table), "unreadable": len(table.refused), "distinct": len(representatives), **counts,
              "jaccard_curve": curve, "pictures": len(table.pictures), "hamming_curve": hamming_curve,
              "candidates": len(i), "not_compared": crowded}
    return Found(verdicts, report)


def _identical(table: Signatures, limits: Duplicates) -> np.ndarray:
    """A number per sample, the same for those that are equal in what counts: int [n]."""
    what = np.concatenate([table.images, table.text], axis=1)
    if limits.match == "images":
        what[np.diff(table.picture_first) > 0, 32:] = 0
    return np.unique(np.ascontiguousarray(what).view("V64").ravel(), return_inverse=True)[1]


def _first_of_each(identical: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """For every usable sample the first one that equals it: int [usable]."""
    places = np.flatnonzero(usable)
    _, first, inverse = np.unique(identical[usable], return_index=True, return_inverse=True)
    return places[first][inverse]


def _picture_groups(table: Signatures, most: int) -> tuple[np.ndarray, list[dict]]:
    """A number per sample, the same for those whose pictures might be alike; and how many pairs of pictures differ in so many bits."""
    hashes, of_picture, count = np.unique(table.pictures, return_inverse=True, return_counts=True)
    i, j, bits = near_hashes(hashes, most)
    component = clusters_of(len(hashes), i, j)[of_picture]
    sequences: dict[tuple, int] = {}
    groups = [sequences.setdefault(tuple(component[a:b].tolist()), len(sequences))
              for a, b in pairwise(table.picture_first.tolist())]
    equal, pairs = pairs_in_buckets(table.pictures), count[i] * count[j]
    curve = [{"bits": distance, "pairs": equal + int(pairs[bits <= distance].sum())} for distance in range(most + 1)]
    return np.array(groups, dtype=np.int64), curve


def _candidates(table: Signatures, samples: np.ndarray, picture_group: np.ndarray, limits: Duplicates) -> tuple:
    """Pairs of samples that share pictures and a band of their text: i, j, and how many pairs were left out of crowded buckets."""
    group = picture_group[samples]
    pictured = np.diff(table.picture_first)[samples] > 0
    codes, crowded = [np.zeros(0, np.int64)], 0
    for band in range(table.bands.shape[1]):
        bands = table.bands[samples, band]
        if limits.match == "images":
            bands = np.where(pictured, np.uint64(0), bands)
        buckets = bands ^ group.astype(np.uint64) * _SPREAD
        pairs = [np.stack(pair) for pair in bucket_pairs(buckets, WINDOW)]
        compared = sum(pair.shape[1] for pair in pairs)
        crowded = max(crowded, pairs_in_buckets(buckets) - compared)
        codes += [pair[0] * len(samples) + pair[1] for pair in pairs]
    code = np.unique(np.concatenate(codes))
    return samples[code // max(len(samples), 1)], samples[code % max(len(samples), 1)], crowded


def _verified(table: Signatures, i: np.ndarray, j: np.ndarray, limits: Duplicates) -> tuple[np.ndarray, np.ndarray]:
    """Of the candidates, places of those whose pictures are alike; and the exact Jaccard similarity of their texts."""
    alike = np.array([place for place in range(len(i)) if _same_pictures(table, i[place], j[place], limits.hamming)], dtype=np.int64)
    similarity = np.array([jaccard(table.shingles_of(int(i[place])), table.shingles_of(int(j[place]))) for place in alike])
    return alike, similarity


def _same_pictures(table: Signatures, i: int, j: int, most: int) -> bool:
    """In order, each within `most` bits of the other sample's; true for two samples without pictures."""
    return bool((np.bitwise_count(table.pictures_of(i) ^ table.pictures_of(j)) <= most).all())


def _images_decide(table: Signatures, i: np.ndarray, similarity: np.ndarray, limits: Duplicates) -> np.ndarray:
    """Where pictures alone count, texts are compared only where there are none."""
    return (np.diff(table.picture_first)[i] > 0) | (similarity >= limits.jaccard)


def _verdicts(table: Signatures, usable: np.ndarray, identical: np.ndarray, cluster: np.ndarray) -> tuple[dict, Mapping]:
    """What is left out and why; and how many clusters and duplicates there are."""
    keeper: dict[int, int] = {}
    for sample in np.flatnonzero(usable).tolist():
        best = keeper.setdefault(int(cluster[sample]), sample)
        if table.answer[sample] > table.answer[best]:
            keeper[int(cluster[sample])] = sample
    size = np.bincount(cluster[usable], minlength=int(cluster.max(initial=0)) + 1)
    verdicts: dict[str, dict[str, tuple[str, str]]] = {unit: {} for unit in table.units}
    counts = {"clusters": int((size > 1).sum()), "exact_duplicates": 0, "near_duplicates": 0}
    for number, unit in enumerate(table.units):
        for sample in range(table.unit_first[number], table.unit_first[number + 1]):
            if not usable[sample]:
                verdicts[unit][table.keys[sample]] = table.refused[sample]
            elif (kept := keeper[int(cluster[sample])]) != sample:
                kind = "exact" if identical[kept] == identical[sample] else "near"
                counts[f"{kind}_duplicates"] += 1
                detail = f"dup_of {table.keys[kept]}, of {size[cluster[sample]]:,} alike"
                verdicts[unit][table.keys[sample]] = (f"{kind}_duplicate", detail)
    return verdicts, counts
