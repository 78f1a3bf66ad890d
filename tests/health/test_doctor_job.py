"""`nvlm doctor --distributed` on two real processes, and the checks of its own that need none."""

import dataclasses
import json
import subprocess

import pytest
import torch

from nvlm_train.config.compose import compose
from nvlm_train.doctor import NOTE, PROBLEM
from nvlm_train.errors import ConfigError
from nvlm_train.health import before, gpus
from nvlm_train.health.links import Link, nodes_of, slow
from nvlm_train.health.storage import Written, checkpoint_bytes, free_bytes, needed_bytes, write_speed
from tests.engine.launching import launch
from tests.health.rank_threads import facts, on_ranks
from tests.health.test_jobs import SCRIPT


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_report_and_leave_nothing_behind(tmp_path):
    run_dir = tmp_path / "run"
    done = launch(SCRIPT, 2, "none", "doctor", "--distributed", "--json", "recipe=nvlm_d_tiny", f"run.dir={run_dir}", folder=tmp_path,
                  timeout=300)
    assert done.returncode == 0 and not done.survivors, done.output[-3000:]
    report = json.loads(done.output[done.output.index("{\n"):done.output.rindex("\n}") + 2])
    assert report["usable"] is True and [rank["rank"] for rank in report["ranks"]] == [0, 1]
    assert {finding["name"]: finding["status"] for finding in report["findings"] if finding["status"] != NOTE} == dict.fromkeys(
        ("versions", "clocks", "storage", "space", "all ranks", "neighbours"), "ok")
    assert {(link["kind"], link["size"], tuple(link["ranks"])) for link in report["links"]} == {
        ("all-reduce", 4 << 20, (0, 1)), ("send", 4 << 20, (0, 1))}
    assert all(link["latency_s"] > 0 and link["seconds"] > 0 for link in report["links"])     # which is longer, a busy machine decides
    assert list(run_dir.iterdir()) == []


def test_another_version_is_refused_with_the_status_of_a_wrong_configuration(monkeypatch):
    real = before.facts_of

    def facts_of(place, device):
        here = real(place, device)
        return dataclasses.replace(here, versions={**here.versions, "torch": "1.0"}) if place.rank == 2 else here

    monkeypatch.setattr(before, "facts_of", facts_of)
    for result in on_ranks(lambda job: before.check(job, [], torch.device("cpu"), 20), 3):
        assert isinstance(result, ConfigError) and str(result).startswith(f"torch: differs: {torch.__version__} on ")
        assert "1.0 on " in str(result) and "(rank 2). Install the same on every node" in str(result)


def test_the_write_speed_is_bounded_and_its_file_removed(tmp_path):
    written = write_speed(tmp_path / "new", most_bytes=20 << 20)
    assert 20 << 20 <= written.bytes < 36 << 20 and written.mb_s == written.bytes / written.seconds / 1e6 and not written.problem
    assert list((tmp_path / "new").iterdir()) == []
    assert write_speed(tmp_path / "new", most_s=0.0).bytes <= 8 << 20
    (tmp_path / "file").touch()
    assert write_speed(tmp_path / "file" / "below").problem == "Not a directory"
    assert Written(0, 0.0).mb_s == 0.0


def test_the_size_of_a_checkpoint_follows_from_its_parameters():
    pretrain, sft = compose(["recipe=nvlm_d_tiny"])
    on_gpu = [checkpoint_bytes(run, gpu=True) for run in (pretrain, sft)]
    assert on_gpu[1] > on_gpu[0]        # the language model's moments and master weights come with finetuning
    # All trained: 2 + 12 bytes a parameter in bf16, 4 + 8 in fp32.
    whole = compose(["recipe=nvlm_d_tiny", "stage=sft", "train.trainable=[vision,connector,language]"])[0]
    assert checkpoint_bytes(whole, gpu=True) * 12 == checkpoint_bytes(whole, gpu=False) * 14
    kept = pretrain.run.keep_last + 2
    assert needed_bytes([pretrain, sft], gpu=True) == sum(on_gpu) * kept


def test_free_space_of_a_folder_that_does_not_exist_yet(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_slow_links_are_those_below_half_of_the_median_of_their_kind():
    speeds = {"send": (10.0, 11.0, 4.6, 9.0), "all-reduce": (1.0,)}
    links = [Link(kind, str(n), (n, n + 1), 1 << 20, 1e-5, 1e-3, speed) for kind, of_kind in speeds.items() for n, speed in enumerate(of_kind)]
    assert [link.gb_s for link in slow(links)] == [4.6]


def test_ranks_are_grouped_by_host_in_order():
    assert nodes_of([facts(rank) for rank in range(4)]) == [(0, 1), (2, 3)]


@pytest.mark.parametrize(("line", "said"), [
    ("", []),
    ("1024, 0, Not Active, Not Active, Not Active", []),
    ("1024, [N/A], Not Active, Not Active, Not Active", []),
    ("1024, 3, Not Active, Not Active, Not Active", [(PROBLEM, "3 uncorrected memory errors")]),
    ("1024, 0, Active, Not Active, Active", [(NOTE, "its clock is held back (hw_slowdown, sw_thermal_slowdown)")]),
])
def test_what_the_driver_says_of_a_gpu(line, said):
    found = gpus.parse(line)
    assert [status for status, _ in found] == [status for status, _ in said]
    assert all(text.startswith(start) for (_, text), (_, start) in zip(found, said, strict=True))


def test_a_driver_that_does_not_answer_is_not_waited_for(monkeypatch):
    def run(*_, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", options["timeout"])
    monkeypatch.setattr(gpus.subprocess, "run", run)
    assert gpus._ask("--query-gpu=memory.used") == ""
