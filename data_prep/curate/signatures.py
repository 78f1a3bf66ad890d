"""What is compared of a sample: hashes of its text and pictures. Computed shard by shard, and kept beside the result of a pass.

A shard's signatures are a file named after the shard; it says which bytes and settings it was made from, and is made again if
these differ. So an interrupted run goes on, and one with other thresholds need not read the pictures again.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.curate.extra import package
from data_prep.curate.picture_hash import picture_hash
from data_prep.curate.words import answer_length, sample_words, shingles
from data_prep.passes import samples_of
from nvlm_train.contracts import Sample
from nvlm_train.data.index import replacing
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import SampleRefused

VERSION = 1     # of the files: raise it when anything below changes what they hold


@dataclass(frozen=True)
class Method:
    """How texts become signatures. gram: words of a shingle; hashes of a MinHash, cut into `bands` of equal length.

    FineWeb's shingles and number of hashes (arXiv:2406.17557). It cuts them into 14 bands of 8, which find 92% of the pairs at a
    Jaccard of 0.8; 28 bands of 4 find all but a millionth of these, and 84% of the pairs at 0.5, for more pairs to verify.
    """

    gram: int = 5
    hashes: int = 112
    bands: int = 28

    def chance(self, jaccard: float) -> float:
        """Probability that two texts of this Jaccard similarity share a band, and so are compared."""
        return 1 - (1 - jaccard ** (self.hashes // self.bands)) ** self.bands


@dataclass(frozen=True)
class Signatures:
    """Of the n samples of some shards, in order; P pictures in all, U shingles in all.

    keys, units:  of each sample, and of each shard; unit_first [shards + 1]: shard u has the samples unit_first[u]:unit_first[u + 1]
    refused:      sample -> [reason, detail] where it cannot be read; its hashes are zeros
    text, images: bytes [n, 32], SHA-256 of the normalised text, and of the bytes of all pictures
    bands:        uint64 [n, bands]; answer: int64 [n], characters of the answers
    pictures:     uint64 [P], pHash; picture_first [n + 1]: sample i has pictures[picture_first[i]:picture_first[i + 1]]
    shingles:     per shard, uint64 [U of the shard], on disk; shingle_first [n + 1] counts from the first shard's start
    """

    keys: tuple[str, ...]
    units: tuple[str, ...]
    unit_first: np.ndarray
    refused: dict[int, tuple[str, str]]
    text: np.ndarray
    images: np.ndarray
    bands: np.ndarray
    answer: np.ndarray
    pictures: np.ndarray
    picture_first: np.ndarray
    shingles: tuple[np.ndarray, ...]
    shingle_first: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def shingles_of(self, sample: int) -> np.ndarray:
        """uint64, ascending."""
        unit = int(np.searchsorted(self.unit_first, sample, "right")) - 1
        start = self.shingle_first[self.unit_first[unit]]
        return self.shingles[unit][self.shingle_first[sample] - start:self.shingle_first[sample + 1] - start]

    def pictures_of(self, sample: int) -> np.ndarray:
        return self.pictures[self.picture_first[sample]:self.picture_first[sample + 1]]


def write_signatures(unit: str, folder: Path, cache: Path, method: Method) -> None:
    """Signatures of one shard to UNIT.npy (shingles) and UNIT.npz (all else), unless they are there already.

    Raises DataError: a package of the `data` extra is missing.
    """
    made_from = _made_from(folder, unit, method)
    path = cache / f"{unit}.npz"
    if _read_header(path).get("made_from") == made_from and (cache / f"{unit}.npy").is_file():
        return
    rows, refused, keys = [], {}, []
    for key, read in samples_of(folder, unit):
        try:
            rows.append(_signature(read(), method))
        except SampleRefused as refusal:
            refused[len(rows)] = [refusal.reason, refusal.detail]
            rows.append(_Row(bytes(32), bytes(32), np.zeros(method.bands, np.uint64), 0, [], np.zeros(0, np.uint64)))
        keys.append(key)
    path.unlink(missing_ok=True)
    with replacing(cache / f"{unit}.npy") as file:
        np.save(file, np.concatenate([np.zeros(0, np.uint64), *(row.shingles for row in rows)]))
    header = json.dumps({"made_from": made_from, "keys": keys, "refused": refused})
    with replacing(path) as file:   # last: it is what tells that both are there
        np.savez(file, header=np.frombuffer(header.encode(), dtype=np.uint8),
                 text=np.frombuffer(b"".join(row.text for row in rows), dtype=np.uint8).reshape(-1, 32),
                 images=np.frombuffer(b"".join(row.images for row in rows), dtype=np.uint8).reshape(-1, 32),
                 bands=np.array([row.bands for row in rows], dtype=np.uint64).reshape(-1, method.bands),
                 answer=np.array([row.answer for row in rows], dtype=np.int64),
                 pictures=np.array([value for row in rows for value in row.pictures], dtype=np.uint64),
                 picture_count=np.array([len(row.pictures) for row in rows], dtype=np.int64),
                 shingle_count=np.array([len(row.shingles) for row in rows], dtype=np.int64))


@dataclass(frozen=True)
class _Row:
    text: bytes
    images: bytes
    bands: np.ndarray
    answer: int
    pictures: Sequence[int]
    shingles: np.ndarray


def _signature(sample: Sample, method: Method) -> _Row:
    words = sample_words(sample)
    grams = shingles(words, method.gram)
    text = hashlib.sha256(" ".join(words).encode()).digest()
    images = hashlib.sha256(b"".join(hashlib.sha256(image).digest() for image in sample.images)).digest()
    return _Row(text, images, _bands(grams, method), answer_length(sample), [picture_hash(image) for image in sample.images], grams)


def _bands(grams: np.ndarray, method: Method) -> np.ndarray:
    """MinHash of a set, each band of it hashed to 64 bits."""
    minhash = _empty_minhash(method.hashes).copy()
    minhash.update_batch(grams.tolist())
    rows = np.ascontiguousarray(minhash.hashvalues.astype("<u4")).reshape(method.bands, -1)
    return np.array([int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little") for row in rows], dtype=np.uint64)


@lru_cache(maxsize=1)
def _empty_minhash(hashes: int) -> Any:
    """Drawing its permutations costs ten times as much as using them."""
    return package("datasketch", "finding texts that are nearly alike").MinHash(hashes, seed=1, hashfunc=_low_bits)


def _low_bits(gram_hash: int) -> int:
    return gram_hash & 0xFFFFFFFF


def _made_from(folder: Path, unit: str, method: Method) -> dict:
    entry = next(entry for entry in ShardFolder(folder, "").entries if Path(entry.name).stem == unit)
    return {"version": VERSION, "sha256": entry.sha256, **asdict(method)}


def _read_header(path: Path) -> dict:
    try:
        with np.load(path) as arrays:
            return json.loads(arrays["header"].tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):     # absent, or cut off: it is written again
        return {}


def read_signatures(units: Sequence[str], cache: Path) -> Signatures:
    """Those of all units together: about 300 bytes a sample in memory, the shingles stay on disk."""
    headers, arrays, on_disk = [], [], []
    for unit in units:
        with np.load(cache / f"{unit}.npz") as loaded:
            headers.append(json.loads(loaded["header"].tobytes()))
            arrays.append({name: loaded[name] for name in loaded.files if name != "header"})
        on_disk.append(np.load(cache / f"{unit}.npy", mmap_mode="r"))
    joined = {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}
    unit_first = _starts(np.array([len(header["keys"]) for header in headers]))
    refused = {int(unit_first[number]) + int(place): tuple(told)
               for number, header in enumerate(headers) for place, told in header["refused"].items()}
    return Signatures(tuple(key for header in headers for key in header["keys"]), tuple(units), unit_first, refused,
                      joined["text"], joined["images"], joined["bands"], joined["answer"], joined["pictures"],
                      _starts(joined["picture_count"]), tuple(on_disk), _starts(joined["shingle_count"]))


def _starts(count: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(count, dtype=np.int64)])


def signatures_writer(folder: Path, cache: Path, method: Method) -> partial:
    """`write_signatures` of one unit, for several processes."""
    return partial(write_signatures, folder=folder, cache=cache, method=method)
