"""Tars made to harm: nothing in them is run, written elsewhere, or believed. Numbers: docs/data_faults.md."""

import tarfile
from pathlib import Path

import pytest

from data_prep.__main__ import main as data_prep
from data_prep.shards import index_folder, write_shards
from nvlm_train.errors import DataError
from tests.data.data_toys import make_samples
from tests.faults.broken_data import header, loaded_gun, record, special, write_tar
from tests.faults.one_epoch import refused, steps_of


@pytest.mark.parametrize("name", ["../../../evil.json", "/tmp/evil.json", "a/../../b.json", "a\\b.json", "a\nb.json", "k\udcf6.json"])
def test_names_that_could_leave_a_folder_are_refused(tmp_path, name, capsys):
    write_tar(tmp_path / "deep" / "x" / "a.tar", {name: record()})
    before = sorted(tmp_path.rglob("*"))
    assert data_prep(["index", str(tmp_path / "deep" / "x")]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path}/deep/x/a.tar: the key {name!r}" in told and sorted(tmp_path.rglob("*")) == before


def sparse() -> tarfile.TarInfo:
    """An old GNU sparse file: its bytes do not lie where its size says."""
    return special("k.0.jpg", tarfile.GNUTYPE_SPARSE)


@pytest.mark.parametrize("member", [
    special("k.0.jpg", tarfile.SYMTYPE, "/etc/passwd"), special("k.0.jpg", tarfile.LNKTYPE, "k.json"), special("k.0.jpg", tarfile.CHRTYPE),
    special("k.0.jpg", tarfile.BLKTYPE), special("k.0.jpg", tarfile.FIFOTYPE), sparse()],
    ids=["symbolic link", "hard link", "character device", "block device", "pipe", "sparse file"])
def test_members_that_are_no_plain_files_are_refused(tmp_path, member, capsys):
    write_tar(tmp_path / "a.tar", {"k.json": record("k.0.jpg"), "k.0.jpg": member})
    assert data_prep(["index", str(tmp_path)]) == 2
    assert "a.tar holds k.0.jpg, a link, device or sparse file" in capsys.readouterr().err


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "pt", "npy", "so", "py"])
def test_members_that_others_would_run_are_refused_unread(tmp_path, extension, capsys):
    folder = tmp_path / "x"
    write_tar(folder / "a.tar", {"k.json": record(), f"k.{extension}": loaded_gun(tmp_path / "trace")})
    assert data_prep(["index", str(folder)]) == 2
    assert f"holds k.{extension}" in capsys.readouterr().err and not (tmp_path / "trace").exists()


def test_a_pickle_under_a_pictures_name_is_no_picture(tmp_path):
    write_tar(tmp_path / "x" / "a.tar", {"k.json": record("k.0.png"), "k.0.png": loaded_gun(tmp_path / "trace")})
    index_folder(tmp_path / "x")
    assert refused(steps_of(tmp_path / "x", 1, 1)) == {"k": "broken_image"} and not (tmp_path / "trace").exists()


def test_headers_that_lead_back_do_not_keep_the_indexer_for_ever(tmp_path, capsys):
    """tarfile follows a size below 0 to an earlier member, and goes round (CVE-2025-8194)."""
    good = [header(f"{name}.json", 2) + b"{}".ljust(512, b"\0") for name in "ab"]
    (tmp_path / "round.tar").write_bytes(b"".join(good) + header("c.json", -1536) + bytes(1024))
    assert data_prep(["index", str(tmp_path)]) == 2
    told = capsys.readouterr().err      # a mended tarfile stops there by itself
    assert f"shard {tmp_path}/round.tar is " in told and "damaged" in told


def test_commands_in_place_of_folders_and_shards_are_not_run(tmp_path, monkeypatch, capsys):
    shards = tmp_path / "shards"
    write_shards(shards, make_samples(20), samples_per_shard=10)
    monkeypatch.chdir(tmp_path)
    pipe = "pipe:touch trace"
    assert data_prep(["index", pipe]) == 2 and pipe in capsys.readouterr().err
    with pytest.raises(DataError, match=f"no folder of shards at {pipe}"):
        steps_of(Path(f"'{pipe}'"), 20)
    (shards / "index.json").write_text((shards / "index.json").read_text().replace("shard-000001.tar", f"{pipe} "))
    with pytest.raises(DataError, match=f"has the shard '{pipe} '; shards are files"):
        steps_of(shards, 20)
    (shards / "shard-000001.tar").rename(shards / "PIPE:touch trace;.tar")
    assert data_prep(["index", str(shards)]) == 2 and "'PIPE:touch trace;.tar'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("trace"))
