"""Shards, samples and pictures as they break in the field, each made by hand so that a test can say what it is."""

import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from nvlm_train.contracts import Turn
from nvlm_train.data.records import write_record
from tests.data.data_toys import encoded, picture

BLOCK = tarfile.BLOCKSIZE


# Tars

def write_tar(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """A tar with exactly these members, as any tool might have written it. Makes the folder; returns the tar's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no plain file: a link, a device, a pipe."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def header(name: str, size: int) -> bytes:
    """A tar header that claims any size, below 0 too (as base 256, which tar allows)."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def changed(path: Path, at: int, new: bytes) -> None:
    """Overwrite bytes in place: the size stays."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(new)


def flip(path: Path, at: int) -> None:
    """Change one bit."""
    changed(path, at, bytes([path.read_bytes()[at] ^ 1]))


def place_of(path: Path, number: int) -> tuple[int, int]:
    """(offset of its header, offset of its data) of a member."""
    with tarfile.open(path) as tar:
        member = tar.getmembers()[number]
    return member.offset, member.offset_data


def _cut(at: Callable[[int, int], int]) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, at(*place_of(path, 3)))


DAMAGE: dict[str, Callable[[Path], None]] = {   # of a shard whose fourth member is a picture
    "cut in a member's data": _cut(lambda head, data: data + 100),
    "cut in a header": _cut(lambda head, data: head + 100),
    "cut between members": _cut(lambda head, data: head),
    "zero bytes": lambda path: os.truncate(path, 0),
    "zeroed header": lambda path: changed(path, place_of(path, 3)[0], bytes(BLOCK)),
    "random header": lambda path: changed(path, place_of(path, 3)[0], np.random.default_rng(0).bytes(BLOCK)),
    "bit flip in a name": lambda path: flip(path, place_of(path, 3)[0] + 2),
    "lost page": lambda path: changed(path, place_of(path, 3)[0], bytes(8 * BLOCK)),
    "two tars in one": lambda path: path.write_bytes(2 * path.read_bytes()),
    "zeros only": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


# Samples

def record(*images: str, question: str = "What is it?", answer: str = "A thing.") -> bytes:
    """The json member of a sample."""
    return write_record((Turn("user", question), Turn("assistant", answer)), images, {})


class _Mine:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def loaded_gun(trace: Path) -> bytes:
    """A pickle that makes the folder `trace` when it is read."""
    return pickle.dumps(_Mine(trace))


# Pictures

def stored(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(samples: np.ndarray, *extra: bytes) -> bytes:
    """A PNG of 16 bits a sample, uint16 [height, width, 1 to 4]: grey, grey and alpha, RGB, RGBA. Pillow cannot write most of them."""
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)), *extra, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def inks(picture: Image.Image, form: str) -> bytes:
    """A JPEG of printing inks as Photoshop writes it: an Adobe marker, and values inverted. form: CMYK or YCCK."""
    cmyk = picture.convert("CMYK")
    if form == "CMYK":
        return stored(cmyk, "JPEG", quality=95, subsampling=0)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(255 - np.asarray(cmyk)), 95, "CMYK", "444")


def bomb(kind: str, side: int = 30_000) -> bytes:
    """A small picture whose header claims side x side pixels."""
    data = bytearray(stored(Image.new("RGB", (8, 8)), kind))
    if kind == "PNG":
        data[16:33] = struct.pack(">II", side, side) + data[24:29] + bytes(4)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at:at + 4] = struct.pack(">HH", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


def hole(jpeg: bytes, share: float = 0.3) -> bytes:
    """Zeros in the middle of the scan, as lost pages of a disk leave them."""
    start, length = len(jpeg) // 2, int(len(jpeg) * share)
    return jpeg[:start] + bytes(length) + jpeg[start + length:]


# A shard of all of it

JPEG = encoded(picture(120, 120))
FAULTY: dict[str, tuple[dict[str, bytes], str]] = {     # key -> members, reason
    "cut": ({"cut.json": record("cut.0.jpg"), "cut.0.jpg": JPEG[:len(JPEG) * 2 // 3]}, "broken_image"),
    "empty": ({"empty.json": record("empty.0.jpg"), "empty.0.jpg": b""}, "broken_image"),
    "html": ({"html.json": record("html.0.jpg"), "html.0.jpg": b"<html>404 Not Found</html>"}, "broken_image"),
    "hole": ({"hole.json": record("hole.0.jpg"), "hole.0.jpg": hole(JPEG)}, "broken_image"),
    "malformed": ({"malformed.json": b'{"turns": ['}, "bad_json"),
    "latin": ({"latin.json": '{"turns": "Köln"}'.encode("latin-1")}, "bad_json"),
    "digits": ({"digits.json": record()[:-1] + b',"n":' + b"9" * 5000 + b"}"}, "bad_json"),
    "absent": ({"absent.json": record("absent.0.jpg")}, "missing_image"),
    "unnamed": ({"unnamed.json": record(), "unnamed.0.jpg": JPEG}, "unnamed_image"),
    "orphan": ({"orphan.0.jpg": JPEG}, "missing_json"),
    "bomb": ({"bomb.json": record("bomb.0.png"), "bomb.0.png": bomb("PNG")}, "image_too_large"),
    "blown": ({"blown.json": record("blown.0.jpg"), "blown.0.jpg": bomb("JPEG")}, "image_too_large"),
}


def faulty_shard(path: Path, good: int) -> Path:
    """A tar of so many good samples, good0 and on, and each of FAULTY. Returns its path."""
    members = {f"good{n}.json": record(f"good{n}.0.jpg") for n in range(good)}
    members |= {f"good{n}.0.jpg": encoded(picture(40 + n, 30)) for n in range(good)}
    return write_tar(path, members | {name: data for of_key, _ in FAULTY.values() for name, data in of_key.items()})
