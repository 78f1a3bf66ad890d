"""A pass keeps, repairs and rejects; its counts add up; interrupted anywhere and with any number of processes the result is the same."""

import json
from dataclasses import dataclass
from pathlib import Path

import pass_fakes
import pytest
from pass_fakes import Numbers, Shouting, text_sample

from data_prep.passes import Judged, Kept, run_pass
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"}


def rejections(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted((folder / "passed").glob("*.rejected.jsonl")) for line in path.read_text().splitlines()]


def test_counts_add_up_and_every_rejection_is_written_down(tmp_path):
    manifest = run_pass("count", Numbers(), tmp_path)
    assert (manifest["in"], manifest["kept"], manifest["rejected"], manifest["repaired"]) == (15, 11, {"divisible": 4}, {"counted": 7})
    assert [line["key"] for line in rejections(tmp_path)] == ["n0", "n4", "n8", "n12"]
    assert rejections(tmp_path)[1] == {"key": "n4", "reason": "divisible", "detail": "4 is a multiple of 4"}
    shards = ShardFolder(tmp_path, "x")
    assert [shards.key(number) for number in range(len(shards))] == [f"n{number}" for number in range(15) if number % 4]


@pytest.mark.distributed
def test_same_bytes_with_any_number_of_processes(tmp_path):
    for workers in (1, 2):
        run_pass("count", Numbers(), tmp_path / str(workers), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2") and len(content(tmp_path / "1")) == 3 * 4 + 3


def test_interrupted_pass_goes_on_and_gives_the_same(tmp_path):
    stop = tmp_path / "stop"
    stop.write_text("part-1")
    source, out = Numbers(stop=stop), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_pass("count", source, out)
    assert not (out / "index.json").exists()
    assert sorted(path.name for path in out.glob("*.tar")) == ["part-0.tar"]
    stop.unlink()
    seen = []
    run_pass("count", source, out, progress=lambda done, units, sums: seen.append((done, sums["in"])))
    assert seen == [(1, 5), (2, 10), (3, 15)]
    run_pass("count", Numbers(), tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_unit_is_cut_into_shards(tmp_path):
    run_pass("count", Numbers(units_=2), tmp_path, samples_per_shard=3)
    found = {entry.name: entry.samples for entry in ShardFolder(tmp_path, "x").entries}
    assert found == {"part-0-000000.tar": 3, "part-1-000000.tar": 3, "part-1-000001.tar": 1}


@pytest.mark.distributed
def test_judge_over_shards(tmp_path):
    run_pass("count", Numbers(), tmp_path / "numbers")
    manifest = run_pass("shout", Judged(tmp_path / "numbers", Shouting()), tmp_path / "out", workers=2)
    assert (manifest["in"], manifest["kept"], manifest["rejected"], manifest["repaired"]) == (11, 7, {"long_answer": 4}, {"shouted": 7})
    shards = ShardFolder(tmp_path / "out", "x")
    assert [shards.read(number).turns[-1].text for number in range(3)] == ["1!", "2!", "3!"]
    assert shards.read(0).source == "x" and rejections(tmp_path / "out")[0]["detail"] == "2 characters, at most 1"


def test_damaged_sample_is_counted_not_lost(tmp_path):
    run_pass("count", Numbers(), tmp_path / "numbers")
    shard = tmp_path / "numbers" / "part-0.tar"
    shard.write_bytes(shard.read_bytes().replace(b"1 + 0?", b"9 + 0?"))
    manifest = run_pass("shout", Judged(tmp_path / "numbers", Shouting(9)), tmp_path / "out")
    assert manifest["in"] == 11 and manifest["rejected"] == {"changed_bytes": 1}


def test_other_settings_are_refused(tmp_path):
    run_pass("count", Numbers(), tmp_path)
    with pytest.raises(DataError, match="begun differently .broken: 4 there, 3 asked"):
        run_pass("count", Numbers(broken=3), tmp_path)
    with pytest.raises(DataError, match="verb: count there, shout asked"):
        run_pass("shout", Numbers(), tmp_path)


def test_changed_input_is_refused(tmp_path):
    run_pass("count", Numbers(), tmp_path / "a")
    run_pass("shout", Judged(tmp_path / "a", Shouting()), tmp_path / "out")
    run_pass("count", Numbers(each=6), tmp_path / "b")
    with pytest.raises(DataError, match="begun differently .from"):
        run_pass("shout", Judged(tmp_path / "b", Shouting()), tmp_path / "out")


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photos.txt").write_text("mine")
    with pytest.raises(DataError, match="photos.txt"):
        run_pass("count", Numbers(), tmp_path)


def test_nothing_kept_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match="no sample was kept .15 divisible"):
        run_pass("count", Numbers(broken=1), tmp_path)
    assert not (tmp_path / "index.json").exists()


@dataclass(frozen=True)
class Listed:
    keys: tuple[str, ...]
    image: bytes | None = None

    def units(self):
        return ["one"]

    def outcomes(self, unit):
        for key in self.keys:
            sample = text_sample(key)
            yield Kept(sample if self.image is None else pass_fakes.replace(sample, images=(self.image,)))

    def settings(self):
        return {}


def test_what_no_shard_can_hold_is_rejected(tmp_path):
    manifest = run_pass("list", Listed(("good", "good", "../evil", "a.b", "k" * 81, "fine")), tmp_path / "keys")
    assert manifest["rejected"] == {"bad_key": 3, "repeated_key": 1} and manifest["kept"] == 2
    with pytest.raises(DataError, match="no sample was kept .1 broken_image"):
        run_pass("list", Listed(("page",), b"<html>not found</html>"), tmp_path / "images")


def test_keys_that_two_units_share_are_refused(tmp_path):
    @dataclass(frozen=True)
    class Twice(Listed):
        def units(self):
            return ["one", "two"]

    with pytest.raises(DataError, match=r"the key same is in one.tar and in two.tar"):
        run_pass("list", Twice(("same",)), tmp_path)


def test_two_at_once_are_refused(tmp_path):
    def again(done, units, sums):
        with pytest.raises(DataError, match="another process is working there"):
            run_pass("count", Numbers(), tmp_path)

    run_pass("count", Numbers(), tmp_path, progress=again)
