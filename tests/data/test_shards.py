import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import webdataset
from data_toys import conversation, encoded, make_samples, picture
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from data_prep.__main__ import main as data_prep
from data_prep.shards import index_folder, write_shards
from nvlm_train.contracts import Sample
from nvlm_train.data import storage
from nvlm_train.data.index import Strings
from nvlm_train.data.records import write_record
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError, SampleRefused


@pytest.fixture
def copy(shard_folder, tmp_path):
    """A copy of the shards to damage."""
    return shutil.copytree(shard_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.tokens-*"))


def write_tar(folder, members, name="a.tar"):
    """A tar of (name, bytes) or ready TarInfo members, as some other tool might write it."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return folder


def record(images=(), text="Hi"):
    return write_record(conversation(text, "Yo"), images, {})


def test_what_is_written_is_read_back(shard_folder):
    folder, samples = ShardFolder(shard_folder, "mixed"), make_samples(60)
    assert len(folder) == 60 and [entry.samples for entry in folder.entries] == [25, 25, 10]
    for number in (59, 0, 24, 25, 31):   # any order
        assert folder.read(number) == samples[number]
        assert folder.key(number) == samples[number].key
    sizes = folder.image_sizes(4)
    assert len(sizes) == len(samples[4].images) == 2 and sizes[0] == (20 + 13 * 4, 20)
    with pytest.raises(IndexError):
        folder.read(60)


def test_the_same_samples_give_the_same_bytes(shard_folder, tmp_path):
    manifest = write_shards(tmp_path / "again", make_samples(60), samples_per_shard=25)
    for path in sorted(shard_folder.glob("*.tar")) + sorted(shard_folder.glob("*index.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert manifest == {"shards": 3, "samples": 60, "images": 48, "bytes": sum(p.stat().st_size for p in shard_folder.glob("*.tar")),
                        "refused": {}, "broken_images": 0}
    assert ShardFolder(shard_folder, "a").fingerprint == ShardFolder(tmp_path / "again", "b").fingerprint


def test_webdataset_reads_our_shards(shard_folder):
    found = list(webdataset.WebDataset(str(shard_folder / "shard-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [sample.key for sample in make_samples(25)]
    assert found[1]["0.png"] == make_samples(2)[1].images[0]


def test_we_index_what_webdataset_writes(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "wds.tar")) as writer:
        for number, image in enumerate([encoded(picture(40, 20)), encoded(picture(20, 40), "PNG")]):
            extension = ("0.jpg", "0.png")[number]
            writer.write({"__key__": f"dir/k{number}", "json": json.loads(record([f"k{number}.{extension}"])), extension: image})
    assert index_folder(tmp_path)["samples"] == 2
    folder = ShardFolder(tmp_path, "x")
    assert folder.key(1) == "dir/k1" and folder.image_sizes(1) == [(20, 40)]
    assert folder.read(0).images == (encoded(picture(40, 20)),)


def test_without_an_index_the_command_is_named(copy):
    (copy / "index.json").unlink()
    with pytest.raises(DataError, match=f"python -m data_prep index {copy}"):
        ShardFolder(copy, "x")


def test_the_command_makes_the_index(copy, capsys):
    before = (copy / "index.json").read_bytes()
    (copy / "index.json").unlink()
    assert data_prep(["index", str(copy)]) == 0
    assert (copy / "index.json").read_bytes() == before and "60 samples" in capsys.readouterr().out


def test_the_dispatcher_is_for_people(tmp_path, capsys):
    assert data_prep(["idnex"]) == 2 and "index" in capsys.readouterr().err
    assert data_prep(["index", str(tmp_path)]) == 2 and "nothing to index" in capsys.readouterr().err
    run = subprocess.run([sys.executable, "-m", "data_prep", "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "index a folder" in run.stdout


def test_a_shard_of_another_size_is_refused_at_the_start(copy):
    path = copy / "shard-000001.tar"
    size = path.stat().st_size
    os.truncate(path, size - 10240)
    with pytest.raises(DataError, match=f"shard-000001.tar is truncated: {size - 10240:,} bytes, its index says {size:,}"):
        ShardFolder(copy, "x")
    path.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        ShardFolder(copy, "x")


def test_a_shard_truncated_while_in_use_stops_the_run(copy):
    folder = ShardFolder(copy, "x")
    os.truncate(copy / "shard-000000.tar", 2000)
    with pytest.raises(DataError, match="truncated while in use"):
        folder.read(24)


def test_a_flipped_byte_is_noticed(copy, capsys):
    folder = ShardFolder(copy, "x")
    folder.verify()
    assert data_prep(["index", str(copy), "--check"]) == 0 and "60 samples, as indexed" in capsys.readouterr().out
    offset, size = folder.index(0).images_of(1)[0, :2].tolist()
    with open(copy / "shard-000000.tar", "r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)
        file.seek(offset + size // 2)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match="shard-000000.tar: SHA-256 is"):
        folder.verify()
    assert data_prep(["index", str(copy), "--check"]) == 2 and "SHA-256" in capsys.readouterr().err
    with pytest.raises(SampleRefused, match="changed_bytes: mixed-0001"):
        folder.read(1)
    assert folder.read(2).key == "mixed-0002"   # its neighbours are untouched


@pytest.mark.parametrize("cut", ["in a picture", "between members", "in the end mark"])
def test_a_truncated_tar_is_not_indexed(copy, cut):
    path = copy / "shard-000000.tar"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    os.truncate(path, {"in a picture": members[6].offset_data + 100, "between members": members[6].offset, "in the end mark": end + 600}[cut])
    with pytest.raises(DataError, match=r"shard-000000\.tar is (truncated|not a readable tar)"):
        index_folder(copy)


def test_a_damaged_header_is_not_the_end(copy):
    with tarfile.open(copy / "shard-000000.tar") as tar:
        header = tar.getmembers()[6].offset
    with open(copy / "shard-000000.tar", "r+b") as file:
        file.seek(header + 3)
        file.write(b"\xff")   # its checksum is wrong now: tarfile alone would stop here without a word
    with pytest.raises(DataError, match="truncated or damaged"):
        index_folder(copy)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../b.json", "a\nb.json"])
def test_keys_that_climb_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="the key"):
        index_folder(write_tar(tmp_path / "bad", [(name, record())]))


def link() -> tarfile.TarInfo:
    member = tarfile.TarInfo("k.0.jpg")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


@pytest.mark.parametrize("member, says", [
    (("k.pickle", b"x"), "k.pickle"), (("k.pth", b"x"), "k.pth"), (("k.py", b"x"), "k.py"), (("k.sh", b"x"), "k.sh"),
    (link(), "a link"), (("k.json", record()), "twice")], ids=lambda value: value if isinstance(value, str) else "")
def test_members_that_a_shard_must_not_hold(tmp_path, member, says):
    with pytest.raises(DataError, match=says):
        index_folder(write_tar(tmp_path / "bad", [("k.json", record()), member]))


def test_keys_are_unique_over_shards(tmp_path):
    write_tar(tmp_path / "x", [("k.json", record())], "a.tar")
    with pytest.raises(DataError, match=r"the key k is in a\.tar and in b\.tar"):
        index_folder(write_tar(tmp_path / "x", [("k.json", record())], "b.tar"))


def test_bad_samples_are_indexed_and_counted(tmp_path):
    folder = write_tar(tmp_path / "x", [
        ("good.json", record(["good.0.jpg"])), ("good.0.jpg", encoded(picture(30, 20))),
        ("notjson.json", b"{"), ("notutf8.json", b"\xff\xfe"), ("noturns.json", b'{"text": "hello"}'),
        ("lost.json", record(["lost.0.jpg"])), ("orphan.0.jpg", encoded(picture(30, 20))),
        ("html.json", record(["html.0.jpg"])), ("html.0.jpg", b"<html>404</html>")])
    manifest = index_folder(folder)
    assert manifest["samples"] == 7 and manifest["broken_images"] == 1
    assert manifest["refused"] == {"bad_json": 3, "missing_image": 1, "missing_json": 1}
    shards = ShardFolder(folder, "x")
    assert shards.image_sizes(0) == [(30, 20)]
    reasons = []
    for number in range(1, 6):
        with pytest.raises(SampleRefused) as caught:
            shards.image_sizes(number)
        reasons.append(caught.value.reason)
    assert reasons == ["bad_json", "bad_json", "bad_json", "missing_image", "missing_json"]
    assert shards.image_sizes(6) == [(0, 0)]


@pytest.mark.parametrize("damage", ["shard name", "version", "json"])
def test_a_forged_or_damaged_folder_index_is_refused(copy, damage):
    path = copy / "index.json"
    content = json.loads(path.read_text())
    if damage == "shard name":
        content["shards"][0]["name"] = "../elsewhere.tar"
    elif damage == "version":
        content["version"] = 99
    path.write_text("{" if damage == "json" else json.dumps(content))
    with pytest.raises(DataError, match=str(copy)):
        ShardFolder(copy, "x")


FORGERIES = {
    "climbing key": ({"keys": lambda array: _put(array, 0, b"../evil")}, "climbs out"),
    "control character": ({"keys": lambda array: _put(array, 3, b"\n")}, "control characters"),
    "bytes that are no text": ({"keys": lambda array: _put(array, 3, b"\xff")}, "damaged"),
    "ends of keys": ({"key_ends": lambda array: array[::-1].copy()}, "do not cut"),
    "offset": ({"records": lambda array: array + 10**12}, "outside the shard"),
    "negative size": ({"images": lambda array: -array}, "outside the shard"),
    "other counts": ({"records": lambda array: array[1:]}, r"shape \[\d+, 2\], \d+ keys"),
    "image shares": ({"image_first": lambda array: array[::-1].copy()}, "share out"),
    "missing array": ({"sha256": None}, "damaged"),
    "reasons": ({"refused": lambda array: np.arange(3)}, "damaged"),
}


def _put(array, at, text):
    changed = array.copy()
    changed[at:at + len(text)] = np.frombuffer(text, dtype=np.uint8)
    return changed


def _forge(path, changes, about=None):
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        header = json.loads(file.metadata()["about"])
    for name, change in changes.items():
        if change is None:
            del arrays[name]
        else:
            arrays[name] = change(arrays[name])
    path.write_bytes(save(arrays, {"about": json.dumps({**header, **(about or {})})}))


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_shard_index_is_refused(copy, forgery):
    changes, told = FORGERIES[forgery]
    _forge(copy / "shard-000000.tar.index.safetensors", changes)
    with pytest.raises(DataError, match=told):
        ShardFolder(copy, "x").read(0)


@pytest.mark.parametrize("about, told", [({"version": 99}, "version 99"), ({"sha256": "0" * 64}, "another version"), ({"format": "x"}, "not a")])
def test_a_shard_index_of_something_else_is_refused(copy, about, told):
    _forge(copy / "shard-000000.tar.index.safetensors", {}, about)
    with pytest.raises(DataError, match=told):
        ShardFolder(copy, "x").read(0)


@pytest.mark.parametrize("size", [0, 5, 40, 400])
def test_a_cut_shard_index_is_refused(copy, size):
    path = copy / "shard-000000.tar.index.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="Make it again"):
        ShardFolder(copy, "x").read(0)


@given(st.lists(st.text(max_size=8), max_size=12))
def test_strings_are_what_they_were_made_of(texts):
    strings = Strings.of(texts)
    assert list(strings) == texts and len(strings) == len(texts)
    assert [strings[place] for place in range(len(texts))] == texts
    assert [strings[place] for place in range(-len(texts), 0)] == texts
    with pytest.raises(IndexError):
        strings[len(texts)]


def test_writing_refuses_what_could_not_be_read(tmp_path, shard_folder):
    with pytest.raises(DataError, match="already holds shards"):
        write_shards(shard_folder, make_samples(1))
    with pytest.raises(DataError, match="the key"):
        write_shards(tmp_path / "a", [Sample("../k", "s", (), conversation("a", "b"))])
    with pytest.raises(DataError, match="dot"):
        write_shards(tmp_path / "b", [Sample("k.1", "s", (), conversation("a", "b"))])
    with pytest.raises(SampleRefused, match="broken_image"):
        write_shards(tmp_path / "c", [Sample("k", "s", (b"<html>",), conversation("a", "b"))])
    assert not list(tmp_path.rglob("*.tar*"))   # nothing half-written stays


def test_threads_that_evict_each_others_files(tmp_path, monkeypatch):
    """A descriptor stays open for whoever reads from it, also when another thread opens the same shard or pushes it out."""
    monkeypatch.setattr("nvlm_train.data.storage.OPEN_FILES", 1)
    samples = make_samples(12)
    write_shards(tmp_path / "many", samples, samples_per_shard=2)
    folder = ShardFolder(tmp_path / "many", "mixed")
    real = storage.pread

    def slow(descriptor, offset, size):
        time.sleep(0.001)
        return real(descriptor, offset, size)
    monkeypatch.setattr(storage, "pread", slow)
    numbers = [number for _ in range(20) for number in range(12)]
    with ThreadPoolExecutor(8) as pool:
        assert [sample.key for sample in pool.map(folder.read, numbers)] == [f"mixed-{number:04d}" for number in numbers]


def test_more_shards_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("nvlm_train.data.storage.OPEN_FILES", 2)
    write_shards(tmp_path / "many", make_samples(12), samples_per_shard=2)
    before = len(os.listdir("/proc/self/fd"))
    folder = ShardFolder(tmp_path / "many", "x")
    for number in [*range(12), *range(12)]:
        assert folder.read(number).key == f"mixed-{number:04d}"
    assert len(os.listdir("/proc/self/fd")) - before == 2
