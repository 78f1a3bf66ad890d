"""Finding what is alike without comparing everything with everything: equal bands make candidates, and candidates are verified."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from data_prep.curate.extra import package

_CHUNK = 1 << 22    # pairs looked at in one go: about 200 MB

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def near_hashes(values: np.ndarray, most: int) -> Pairs:
    """Every pair of 64-bit hashes that differ in at most `most` bits: (i, j, bits) with i < j, ascending.

    values: uint64 [n], all different. Cut into most + 1 bands, two such hashes agree in one band at least (pigeonhole), so only
    those in the same band are compared: nothing is missed.
    """
    found = []
    for band in _bands(values, most + 1):
        order = np.argsort(band, kind="stable")
        ordered = values[order]     # so that comparing walks through memory in order
        for at, step in _neighbours(band[order]):
            bits = np.bitwise_count(ordered[at] ^ ordered[at + step])
            near = np.flatnonzero(bits <= most)
            found.append((order[at[near]], order[at[near] + step], bits[near]))
    return _once(found, len(values))


def near_between(a: np.ndarray, b: np.ndarray, most: int) -> Pairs:
    """Every pair of a hash in `a` and one in `b` that differ in at most `most` bits: (i in a, j in b, bits), ascending."""
    found = []
    for band_a, band_b in zip(_bands(a, most + 1), _bands(b, most + 1), strict=True):
        order = np.argsort(band_b, kind="stable")
        first = np.searchsorted(band_b[order], band_a, "left")
        count = np.searchsorted(band_b[order], band_a, "right") - first
        for rows in _chunks(count):
            i = np.repeat(rows, count[rows])
            within = np.arange(len(i)) - np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
            j = order[np.repeat(first[rows], count[rows]) + within]
            bits = np.bitwise_count(a[i] ^ b[j])
            near = bits <= most
            found.append((i[near], j[near], bits[near]))
    return _once(found, len(b))


def bucket_pairs(keys: np.ndarray, window: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places that hold equal keys, (i, j) with i < j, in pieces. window: an entry meets that many of its bucket at most."""
    order = np.argsort(keys, kind="stable")
    for at, step in _neighbours(keys[order]):
        if window is not None and step > window:
            return
        yield order[at], order[at + step]


def _neighbours(ordered: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """(places, step): the places of a sorted array whose entry equals the one `step` places on; for every step that has any."""
    at, step = np.arange(len(ordered)), 0
    while True:
        step += 1
        at = at[at < len(ordered) - step]
        at = at[ordered[at] == ordered[at + step]]      # whoever has no equal at this step has none at the next
        if not len(at):
            return
        yield at, step


def pairs_in_buckets(keys: np.ndarray) -> int:
    """How many pairs of equal keys there are."""
    _, count = np.unique(keys, return_counts=True)
    return int((count * (count - 1) // 2).sum())


def clusters_of(count: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Connected components of a graph of `count` nodes with the edges i-j: int [count], a number per component."""
    sparse = package("scipy.sparse", "finding clusters")
    graph = package("scipy.sparse.csgraph", "finding clusters")
    edges = sparse.coo_matrix((np.ones(len(i), dtype=np.int8), (i, j)), shape=(count, count))
    return graph.connected_components(edges, directed=False)[1]


def _bands(values: np.ndarray, count: int) -> list[np.ndarray]:
    """The bits of 64-bit hashes cut into `count` numbers each."""
    edges = [64 * number // count for number in range(count + 1)]
    return [(values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1) for low, high in pairwise(edges)]


def _chunks(count: np.ndarray) -> Iterator[np.ndarray]:
    """Row numbers, cut where the rows' counts fill a chunk."""
    part = np.cumsum(count) // _CHUNK
    rows = np.flatnonzero(count)
    yield from np.split(rows, np.flatnonzero(np.diff(part[rows])) + 1) if len(rows) else ()


def _once(found: list[Pairs], width: int) -> Pairs:
    """Pairs that several bands found, once each."""
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8)
    i, j, bits = (np.concatenate(part) for part in zip(*found, strict=True))
    _, first = np.unique(i.astype(np.int64) * width + j, return_index=True)
    return i[first].astype(np.int64), j[first].astype(np.int64), bits[first]
