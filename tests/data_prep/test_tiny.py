"""The built-in dataset `tiny`: made once, whole, by whoever comes first."""

import os
import threading

import pytest

from data_prep import tiny, tiny_data
from nvlm_train.contracts import IMAGE_PLACEHOLDER
from nvlm_train.data.images import image_size
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.ensure("tiny", tmp_path_factory.mktemp("cache"))


def test_folders_hold_the_promised_numbers(folder):
    assert {path.name: len(ShardFolder(path, "x")) for path in folder.iterdir()} == tiny_data.COUNTS
    assert sum(tiny_data.COUNTS.values()) == 540


def test_pictures_fit_their_placeholders_and_come_in_many_sizes(folder):
    sizes, pairs = set(), 0
    for name in ("pretrain", "sft", "validation"):
        shards = ShardFolder(folder / name, name)
        for i in range(len(shards)):
            sample = shards.read(i)
            assert sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns) == len(sample.images)
            assert sample.turns[-1].role == "assistant" and sample.meta["task"]
            sizes |= {image_size(image) for image in sample.images}
            pairs += len(sample.images) == 2
    assert sizes == set(tiny_data.CANVASES)
    assert pairs == 50


def test_text_folder_has_no_pictures_and_right_sums(folder):
    shards = ShardFolder(folder / "text", "text")
    for i in range(len(shards)):
        sample = shards.read(i)
        first, second = (int(number) for number in sample.turns[0].text.removeprefix("Calculate ").rstrip(".").split(" + "))
        assert sample.images == () and sample.turns[1].text == str(first + second)


def test_same_bytes_every_time(folder, tmp_path):
    again = tiny.ensure("tiny", tmp_path)
    assert again.name == folder.name
    tars = sorted(path.relative_to(folder) for path in folder.rglob("*.tar"))
    assert len(tars) == 4
    assert all((folder / tar).read_bytes() == (again / tar).read_bytes() for tar in tars)


def test_second_call_does_not_write(folder, monkeypatch):
    monkeypatch.setattr(tiny.shards, "write_shards", lambda *_: pytest.fail("wrote it again"))
    assert tiny.ensure("tiny", folder.parent) == folder


def test_several_at_once_agree_and_leave_nothing_behind(tmp_path, monkeypatch):
    start = threading.Barrier(3)
    write = tiny.shards.write_shards

    def together(*arguments):
        start.wait(60)
        return write(*arguments)

    monkeypatch.setattr(tiny.shards, "write_shards", together)
    monkeypatch.setattr(tiny_data, "SETS", {"text": tiny_data.SETS["text"]})
    found = []
    threads = [threading.Thread(target=lambda: found.append(tiny.ensure("tiny", tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3 and len(set(found)) == 1
    assert os.listdir(tmp_path) == [found[0].name]


def test_a_failure_leaves_no_half_dataset(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(tiny.shards, "write_shards", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny.ensure("tiny", tmp_path)
    assert os.listdir(tmp_path) == []


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("NVLM_CACHE", raising=False)
    assert tiny.default_cache() == tmp_path / "xdg" / "nvlm_train"
    monkeypatch.setenv("NVLM_CACHE", str(tmp_path / "mine"))
    assert tiny.default_cache() == tmp_path / "mine"


def test_builtin_paths_are_resolved_and_others_left_alone(folder, monkeypatch):
    monkeypatch.setenv("NVLM_CACHE", str(folder.parent))
    assert tiny.resolve("builtin:tiny/sft") == str(folder / "sft")
    assert tiny.resolve("some/folder") == "some/folder"


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(DataError, match="'tinny'.*tiny, demo"):
        tiny.ensure("tinny")


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny, "PACKAGES", {"demo": ("json", "no_such_package")})
    with pytest.raises(DataError, match=r"\(no_such_package\).*\[demo\]"):
        tiny.ensure("demo", tmp_path)
