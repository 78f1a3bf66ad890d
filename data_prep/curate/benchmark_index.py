"""What is looked up of benchmarks: n-grams of their texts, hashes of their pictures, and which question goes with which picture."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.curate.benchmarks import Item, Reading, items_of, picture_of
from data_prep.curate.options import limit
from data_prep.curate.picture_hash import picture_hashes
from data_prep.curate.words import gram_hashes, words_of
from nvlm_train.data.index import replacing
from nvlm_train.errors import DataError, SampleRefused

LONGEST, SHORTEST = 13, 8   # words of a gram (GPT-3, arXiv:2005.14165, appendix C: N is the 5th percentile of lengths, from 8 to 13)


@dataclass(frozen=True)
class Overlap:
    """What counts as a part of a benchmark. Texts are compared in runs of 13 words, or whole if they have 8 to 12 and no picture.

    A short question about a picture is a form of words (`what is the color of the car on the left`); it counts with its picture.
    """

    common: int = limit(10, "a run of words in more entries than this is a form of words, and counts for nothing", metavar="N")
    share: float = limit(0.0, "least share of an entry's runs that a sample must hold; 0: one run is enough", metavar="SHARE")
    hamming: int = limit(8, "most bits of 64 in which hashes of two pictures, or of their centres, differ", metavar="BITS")
    images: str = limit("reject", "what becomes of a sample that shares a picture but no question", choices=("reject", "report"))


@dataclass(frozen=True)
class BenchmarkIndex:
    """Looked up by scanning processes.

    items:      of all benchmarks; `folders` names where each benchmark lies
    questions:  words of each item's question, joined by a space
    grams:      size -> (uint64 [g] ascending, int64 [g] item of each); gram_count int64 [items], runs that count of each item
    pictures:   uint64 [p] ascending, pHashes of all pictures and their centres
    picture_at: int64 [p, 2], item and place among its pictures
    told:       counts for the report
    """

    folders: dict[str, str]
    items: tuple[Item, ...]
    questions: tuple[str, ...]
    grams: dict[int, tuple[np.ndarray, np.ndarray]]
    gram_count: np.ndarray
    pictures: np.ndarray
    picture_at: np.ndarray
    told: dict


def build_index(folders: Sequence[Path], limits: Overlap) -> BenchmarkIndex:
    """Raises DataError: two folders of one name, a benchmark that cannot be read, or one with nothing in it."""
    if len({folder.resolve().name for folder in folders}) != len(folders):
        raise DataError("--against: two benchmark folders have the same name; reports tell them apart by it: rename one")
    items: list[Item] = []
    reading = Reading()
    for folder in folders:
        found = list(items_of(folder.resolve(), reading))
        if not found:
            raise DataError(f"{folder} holds no entry that can be read")
        items += found
    places = {folder.resolve().name: str(folder.resolve()) for folder in folders}
    pictures, picture_at, counts = _pictures(items, places)
    grams, gram_count, dropped = _grams(items, limits.common)
    told = {"items": len(items), **counts, "absent_pictures": reading.absent,
            "unreadable_items": reading.refused, "common_runs": dropped,
            "by_picture_only": int(((gram_count == 0) & np.array([bool(item.pictures) for item in items])).sum()),
            "cannot_be_matched": int(((gram_count == 0) & np.array([not item.pictures for item in items])).sum())}
    return BenchmarkIndex(places, tuple(items), tuple(" ".join(words_of(item.question)) for item in items), grams, gram_count,
                          pictures, picture_at, told)


def _pictures(items: Sequence[Item], places: dict[str, str]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """`pictures` and `picture_at` of the index; and how many pictures there are, and are broken."""
    hashes, at, broken, known = [], [], 0, {}
    for number, item in enumerate(items):
        for place, name in enumerate(item.pictures):
            source = (item.benchmark, name)
            if source not in known:
                try:
                    known[source] = picture_hashes(picture_of(Path(places[item.benchmark]), name))
                except SampleRefused:
                    known[source] = ()
                    broken += 1
            hashes += known[source]
            at += [(number, place)] * len(known[source])
    values = np.array(hashes, dtype=np.uint64)
    order = np.argsort(values, kind="stable")
    counts = {"pictures": len(known) - broken, "broken_pictures": broken}
    return values[order], np.array(at, dtype=np.int64).reshape(-1, 2)[order], counts


def _grams(items: Sequence[Item], common: int) -> tuple[dict[int, tuple[np.ndarray, np.ndarray]], np.ndarray, int]:
    """Size -> (grams, items); runs that count of each item; how many runs are forms of words."""
    by_size: dict[int, list[tuple[np.ndarray, int]]] = {}
    for number, item in enumerate(items):
        for text in item.texts:
            words = words_of(text)
            if len(words) >= (LONGEST if item.pictures else SHORTEST):
                size = min(len(words), LONGEST)
                by_size.setdefault(size, []).append((np.unique(gram_hashes(words, size)), number))
    grams, dropped = {}, 0
    count = np.zeros(len(items), dtype=np.int64)
    for size, parts in sorted(by_size.items()):
        pairs = np.unique(np.concatenate([np.stack([part, np.full(len(part), number, np.uint64)], axis=1)
                                          for part, number in parts]), axis=0)
        _, inverse, times = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
        dropped += int((times > common).sum())
        pairs = pairs[times[inverse.ravel()] <= common]
        grams[size] = (pairs[:, 0].copy(), pairs[:, 1].astype(np.int64))
        np.add.at(count, grams[size][1], 1)
    return grams, count, dropped


def _contents(index: BenchmarkIndex) -> tuple[bytes, dict[str, np.ndarray]]:
    """All that is not an array, as JSON; and the arrays by name."""
    header = json.dumps({"folders": index.folders, "items": [asdict(item) for item in index.items], "questions": index.questions,
                         "sizes": list(index.grams), "told": index.told}, sort_keys=True).encode()
    arrays = {"gram_count": index.gram_count, "pictures": index.pictures, "picture_at": index.picture_at}
    for size, (grams, of_item) in index.grams.items():
        arrays |= {f"grams_{size}": grams, f"items_{size}": of_item}
    return header, arrays


def digest_of(index: BenchmarkIndex) -> str:
    """SHA-256 of all that it holds, by which it is told from another."""
    header, arrays = _contents(index)
    digest = hashlib.sha256(header)
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def save_index(index: BenchmarkIndex, path: Path) -> None:
    """Write it for other processes to load."""
    header, arrays = _contents(index)
    with replacing(path) as file:
        np.savez(file, header=np.frombuffer(header, dtype=np.uint8), **arrays)


@lru_cache(maxsize=1)
def load_index(path: Path, digest: str) -> BenchmarkIndex:
    """What `save_index` wrote; once in each process. digest: told apart by it."""
    with np.load(path) as arrays:
        header = json.loads(arrays["header"].tobytes())
        items = tuple(Item(**{**item, "texts": tuple(item["texts"]), "pictures": tuple(item["pictures"])}) for item in header["items"])
        grams = {size: (arrays[f"grams_{size}"], arrays[f"items_{size}"]) for size in header["sizes"]}
        return BenchmarkIndex(header["folders"], items, tuple(header["questions"]), grams, arrays["gram_count"], arrays["pictures"],
                              arrays["picture_at"], header["told"])
