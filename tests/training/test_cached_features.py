"""`nvlm data cache-features`, and training from what it stored: the real engine on built-in data, in this process."""

import logging
import os
import shutil
import time
from collections import namedtuple
from dataclasses import replace

import pytest
from training_fakes import FakeEngine

from data_prep import tiny
from data_prep.shards import write_shards
from nvlm_train import cli
from nvlm_train.config.compose import compose
from nvlm_train.config.rules import problems
from nvlm_train.data import feature_files
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.parallel import groups
from nvlm_train.training import cache_features, encode_shards
from nvlm_train.training.cache_features import cache_features_command
from nvlm_train.training.logs import read_rows
from nvlm_train.training.stages import train_all
from tests.data.data_toys import conversation, make_samples
from tests.parity.test_layouts import LOSS, NORM, OPEN, differences
from tests.parity.train_ranks import RATES

pytestmark = pytest.mark.slow

STAGE = ("stage=pretrain", *RATES, "train.steps=6", "run.eval_batches=1", "run.examples=0", "run.device=cpu")
TINY = ("recipe=nvlm_d_tiny", *STAGE)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module", autouse=True)
def job():
    yield
    groups.stop()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The built-in data, of this module's own: features beside the session's would be read by other tests."""
    return tiny.ensure("tiny", tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def data(made, tmp_path, monkeypatch):
    """A copy without any features."""
    monkeypatch.setenv("NVLM_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(made, tmp_path / "cache" / made.name)


@pytest.fixture(autouse=True)
def said(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def cache(*settings):
    cache_features_command(compose(settings or TINY))


def train(run_dir, *settings):
    recipe = () if settings and settings[0].startswith("recipe=") else TINY[:1]
    train_all(compose([*recipe, *STAGE, f"run.dir={run_dir}", *settings]))
    return read_rows(run_dir / "metrics.jsonl")


def files(data):
    return sorted(data.glob("*/*.features-*"))


@pytest.mark.parametrize("recipe", ["nvlm_d_tiny", "nvlm_x_tiny", "nvlm_h_tiny"])
def test_reading_features_changes_nothing(recipe, data, tmp_path, said):
    """To the bounds of `tests/parity/test_cached_layouts.py`, which says why. Gates are open: closed ones hide the pictures."""
    settings = (f"recipe={recipe}", *([] if recipe == "nvlm_d_tiny" else [OPEN]))
    computed = train(tmp_path / "computed", *settings)
    assert "features" not in said.text, "who never cached any hears nothing of it"
    cache(*settings, *STAGE)
    cached = train(tmp_path / "cached", *settings)
    assert said.text.count("the vision encoder's features are read from beside the shards") == 2, "blend and validation"
    assert max(differences(computed, cached, "loss")) < LOSS and max(differences(computed, cached, "grad_norm")) < NORM
    assert (tmp_path / "cached" / "samples.jsonl").read_bytes() == (tmp_path / "computed" / "samples.jsonl").read_bytes()
    losses = [read_rows(tmp_path / name / "eval.jsonl")[-1]["loss"] for name in ("computed", "cached")]
    assert losses[1] == pytest.approx(losses[0], rel=LOSS)
    assert [row["tiles"] for row in cached] == [row["tiles"] for row in computed] and all(row["tiles"] for row in cached)
    assert {row["tflops"]["vit"] for row in cached} == {0} and all(row["tflops"]["vit"] > 0 for row in computed)
    assert all(a["tflops"]["connector"] > 0 and b["tflops"]["connector"] > 0 for a, b in zip(computed, cached, strict=True))


def test_a_run_goes_on_in_the_middle_with_features(tmp_path, said):
    cache()
    straight = train(tmp_path / "run", "run.save_every=3", "data.features=require")
    said.clear()
    again = train(tmp_path / "run", "run.save_every=3", "data.features=require",
                  f"run.resume={tmp_path}/run/checkpoints/pretrain/step-00000003")
    assert "goes on after step 3 of 6" in said.text and "are read from beside the shards" in said.text
    assert [(row["step"], row["loss"], row["grad_norm"]) for row in again] == [
        (row["step"], row["loss"], row["grad_norm"]) for row in straight]
    computed = train(tmp_path / "run", "run.save_every=3", "data.features=off",
                     f"run.resume={tmp_path}/run/checkpoints/pretrain/step-00000003")
    assert max(differences(straight, computed, "loss")) < LOSS


def test_what_is_cached_stays_and_the_rest_is_made(data, said):
    cache()
    first, second = files(data)
    before = first.read_bytes(), second.read_bytes()
    times = first.stat().st_mtime_ns, second.stat().st_mtime_ns
    assert "2 shards to encode, 0 are cached already" in said.text and "200 tiles of 32,768 bytes: 6.2 MiB needed" in said.text
    second.unlink()
    leftover, fresh = (second.with_name(f".{second.name}.{name}.tmp") for name in ("dead", "alive"))
    leftover.write_bytes(b"half"), fresh.write_bytes(b"half")
    os.utime(leftover, (time.time() - 3600,) * 2)
    cache()
    assert "1 shards to encode, 1 are cached already" in said.text and f"removed {leftover}" in said.text
    assert fresh.exists() and not leftover.exists(), "another job may be writing the young one"
    assert (first.read_bytes(), second.read_bytes()) == before, "the same bytes, whatever is made when"
    assert first.stat().st_mtime_ns == times[0] and second.stat().st_mtime_ns > times[1]


def test_features_of_other_settings_or_weights_are_told_and_not_used(tmp_path, said):
    cache()
    train(tmp_path / "a", "train.steps=1", "data.max_tiles=2")
    assert "is of something else: data.max_tiles is 1 there and 2 here" in said.text
    train(tmp_path / "b", "train.steps=1", "train.seed=7")
    assert "is of something else: weights is" in said.text
    assert "are read from beside" not in said.text
    with pytest.raises(DataError, match="=require, and those of data.blend cannot be read: images lacks them for 1 of 1 shards"):
        train(tmp_path / "c", "train.steps=1", "train.seed=7", "data.features=require")


def test_the_encoder_is_the_one_that_training_starts_from(tmp_path, data, said):
    """A run that trained its encoder is the start of one that freezes it: by init= and as backbone."""
    train(tmp_path / "made", "train.trainable=[vision,connector]", "train.steps=2")
    cache()
    for start in (f"init={tmp_path}/made", f"model.vision.weights={tmp_path}/made"):
        with pytest.raises(DataError, match="is of something else: weights is"):
            train(tmp_path / "without", start, "train.steps=1", "data.features=require")
        shutil.rmtree(tmp_path / "without")
    cache(*TINY, f"init={tmp_path}/made")
    assert len(files(data)) == 4
    for number, start in enumerate((f"init={tmp_path}/made", f"model.vision.weights={tmp_path}/made")):
        assert len(train(tmp_path / f"with {number}", start, "train.steps=1", "data.features=require")) == 1


def test_a_trained_encoder_has_no_use_for_features(tmp_path, said):
    cache()
    trained = "train.trainable=[vision.layers.3.*,connector]"
    rows = train(tmp_path / "run", "train.steps=1", trained)
    assert rows[0]["tflops"]["vit"] > 0 and "features" not in said.messages[-1]
    assert "are read from beside" not in said.text
    with pytest.raises(ConfigError, match="data.features=require, but train.trainable=.* trains the vision encoder"):
        train(tmp_path / "no", "train.steps=1", trained, "data.features=require")
    with pytest.raises(ConfigError, match="stage pretrain trains the vision encoder"):
        cache(*TINY, trained)
    assert not problems(compose([*TINY, "data.features=require"])[0])


def test_as_a_person_starts_it(data, capsys):
    assert cli.main(["data", "cache-features", *TINY]) == 0 and len(files(data)) == 2
    assert cli.main(["data", "cache-features", "recipe=nvlm_d_tiny"]) == 2
    assert "features are cached for one stage at a time" in capsys.readouterr().err
    assert cli.main(["data", "cache-features", *TINY, "--json"]) == 2
    assert "--json: cache-features has no flags" in capsys.readouterr().err
    assert cli.main(["data", "cache-featurs", *TINY]) == 2
    assert "nvlm data cache-features recipe=… stage=… are the forms" in capsys.readouterr().err


def test_no_room_is_found_before_any_work(data, monkeypatch):
    monkeypatch.setattr(cache_features.shutil, "disk_usage", lambda path: Usage(10, 10, 1000))
    with pytest.raises(DataError, match=r"features need 6.3 MiB, and the disk of .* has 1000 B free"):
        cache()
    assert not files(data)


def test_a_folder_that_cannot_be_written_to_is_found_before_any_work(data, monkeypatch):
    def refuse(**settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache_features.tempfile, "TemporaryFile", refuse)
    with pytest.raises(DataError, match=r"cannot be written beside the shards in .*: Permission denied. Let the folder's owner"):
        cache()
    assert not files(data)


def test_what_is_refused_at_caching_is_refused_in_training(tmp_path, said):
    """Pictures that break off, text too long for a row, text alone: the same slots stay empty, for the same reasons."""
    samples = make_samples(24)
    for number in (4, 7, 10):
        samples[number] = replace(samples[number], images=tuple(image[:len(image) // 2] for image in samples[number].images))
    samples[13] = replace(samples[13], turns=conversation("Why? " * 300, "No."))
    write_shards(tmp_path / "shards", samples, samples_per_shard=10)
    own = (f"data.blend={{mixed:{{path:{tmp_path}/shards}}}}", "data.max_refused=1")
    cache(*TINY, *own)
    assert said.text.count("gets no features, training will refuse it too: broken_image") == 3
    for name in ("require", "off"):
        train(tmp_path / name, *own, f"data.features={name}")
    records = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("require", "off")]
    assert records[0] == records[1]
    reasons = [reason for row in read_rows(tmp_path / "off" / "samples.jsonl") for reason in row["refused"].values()]
    assert set(reasons) == {"broken_image", "too_long"} and len(reasons) >= 6


def test_a_file_system_that_does_not_answer_is_named(monkeypatch):
    def hang(sample, worker):
        worker.note("reading picture 7 of a.tar")
        time.sleep(1.5)

    monkeypatch.setattr(encode_shards, "_tiles", hang)
    monkeypatch.setattr(encode_shards, "STALL_S", 0.3)
    with pytest.raises(DataError, match="no data: a thread has been reading picture 7 of a.tar for 0 s. Is the file system that"):
        cache()


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_file(data, monkeypatch):
    def fail(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_files.FeatureWriter, "finish", fail)
    with pytest.raises(DataError, match="cannot be written: No space left on device. Started again"):
        cache()
    assert not files(data) and not list(data.glob("*/.*"))


def test_damaged_files_stop_the_run(data, tmp_path):
    cache()
    path = files(data)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="is damaged .*Delete"):
        train(tmp_path / "run", "train.steps=1")


def test_progress_tells_rate_and_time_left(monkeypatch, said):
    now = iter([100.0, 101.0, 112.0, 113.0, 125.0])
    monkeypatch.setattr(encode_shards.time, "monotonic", lambda: next(now))
    progress = encode_shards.Progress(1000, FakeEngine(data_size=2))
    for _ in range(4):
        progress.add(60)
    assert said.messages == ["120 of 1,000 tiles of this process's share, 10 tiles/s, 1m 28s left",
                             "240 of 1,000 tiles of this process's share, 9.6 tiles/s, 1m 19s left"]
