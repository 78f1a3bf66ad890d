"""Cached features: what is written is read back verified, rows are those of the uncached loader, what does not fit is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_toys import conversation, make_samples, small_model
from safetensors import safe_open

from data_prep.shards import write_shards
from nvlm_train.config import schema
from nvlm_train.contracts import Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.feature_files import feature_file_name, read_about, writing
from nvlm_train.data.features import CachedFeatures, FeatureKey, any_cached, feature_key, is_cached, lacking
from nvlm_train.data.loader import build_loader, validation_rows
from nvlm_train.data.packing import pack_row
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.sources import Source
from nvlm_train.errors import DataError, SampleRefused

L, C = 5, 4     # odd on purpose: 5 x 4 bf16 numbers are 40 bytes
KEY = FeatureKey({"weights": "abc"}, L, C, torch.float32)
DATA = {"max_tokens": 200, "pack_tokens": 256, "pack_tiles": 14}


def see(tiles: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """Stands for an encoder: numbers that belong to a tile and to no other."""
    pixels = tiles.flatten(1).double()
    probes = torch.randn(pixels.shape[1], L * C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (pixels @ probes).view(len(tiles), L, C).to(dtype)


def cache(source: Source, key: FeatureKey = KEY) -> list[int]:
    """Cache a folder's features as the command does; returns the samples that were refused."""
    folder, refused, number = source.folder, [], 0
    for shard, entry in enumerate(folder.entries):
        images = folder.index(shard).image_first
        path = folder.path / feature_file_name(entry.name, key.name)
        with writing(path, entry, key.parts, int(images[-1]), (L, C), key.dtype, most_tiles=1000) as writer:
            for place in range(entry.samples):
                try:
                    plan = source.plan(number)
                    if plan.tiles:
                        tiles = source.encoder.encode(source.read(number), plan).tiles
                        features = see(torch.from_numpy(tiles), key.dtype)
                        own = slice(images[place], images[place + 1])
                        writer.add(place, own, plan.grids, folder.read_record(number), features)
                except SampleRefused:
                    refused.append(number)
                number += 1
    return refused


@pytest.fixture
def encoder(tokenizer):
    return Encoder(small_model(), schema.Data(**DATA), tokenizer)


@pytest.fixture
def folder(shard_folder, tmp_path):
    """A copy of the shards to put features beside."""
    return shutil.copytree(shard_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.tokens-*"))


@pytest.fixture
def source(folder, encoder):
    return Source("mixed", ShardFolder(folder, "mixed"), encoder)


def make_run(folder: Path, **data) -> schema.Run:
    blend = {"mixed": schema.Source(str(folder))}
    return schema.Run("test", "sft", model=small_model(), train=schema.Train(steps=6, global_batch=10, seed=3),
                      data=schema.Data(blend=blend, validation=blend, **DATA, **data))


def first_with_tiles(source: Source) -> tuple[int, tuple]:
    return next((number, source.plan(number).grids) for number in range(len(source)) if source.plan(number).tiles > 1)


def read(source: Source, sample: int, key: FeatureKey = KEY) -> tuple[Sample, torch.Tensor]:
    plan = source.plan(sample)
    out = torch.empty(plan.tiles, L, C, dtype=key.dtype)
    return CachedFeatures(source.folder, key).read(sample, plan.grids, out), out


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def file_of(source: Source, sample: int, key: FeatureKey = KEY) -> Path:
    return source.folder.path / feature_file_name(source.folder.entries[source.folder.locate(sample)[0]].name, key.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_back(source, dtype):
    key = replace(KEY, dtype=dtype)
    assert cache(source, key) == []
    seen = 0
    for number in range(len(source)):
        plan = source.plan(number)
        assert CachedFeatures(source.folder, key).holds(number) == (plan.tiles > 0)
        if plan.tiles:
            sample, features = read(source, number, key)
            whole = source.read(number)
            assert torch.equal(features, see(torch.from_numpy(source.encoder.encode(whole, plan).tiles), dtype))
            assert sample == replace(whole, images=())
            seen += plan.tiles
    assert seen > 60
    with safe_open(file_of(source, 0, key), framework="pt") as file:     # a safetensors file like any other
        features = file.get_tensor("features")
        assert features.dtype == dtype and len(features) == file.get_tensor("tile_first")[-1]


@pytest.mark.parametrize("workers", [0, 3])
def test_rows_differ_from_the_uncached_ones_in_their_tiles_alone(source, tokenizer, workers):
    cache(source)
    run = make_run(source.folder.path, workers=workers)
    with build_loader(run, tokenizer, 0, 1) as plain, build_loader(run, tokenizer, 0, 1, features=KEY) as cached:
        pairs = [(a, b) for x, y in zip(plain, cached, strict=True) for a, b in zip(x.rows, y.rows, strict=True)]
        assert plain.refused == cached.refused
    validation = [validation_rows(run, tokenizer, 0, 1, 2, features=key) for key in (None, KEY)]
    for plain, cached in [*pairs, *zip(*validation, strict=True)]:
        if len(plain.tiles_nCPP):
            assert torch.equal(cached.features_nLC, see(plain.tiles_nCPP))
        assert len(cached.tiles_nCPP) == 0 and cached.tiles_nCPP.shape[1:] == plain.tiles_nCPP.shape[1:]
        assert plain.keys == cached.keys and plain.features_nLC is None
        assert all(torch.equal(getattr(plain, name), getattr(cached, name)) for name in (
            "tokens_T", "positions_T", "labels_T", "loss_weights_T", "cu_seqlens", "tile_starts_n", "reads_s4", "memory_tags_mG"))
    assert len(pairs) > 12


def test_the_same_slots_stay_empty_for_the_same_reasons(tmp_path, tokenizer, encoder, caplog):
    samples = make_samples(20)
    for number in (4, 7):     # of a picture whose header is fine
        samples[number] = replace(samples[number], images=tuple(image[:len(image) // 2] for image in samples[number].images))
    samples[9] = replace(samples[9], turns=conversation("Why? " * 300, "No."))
    samples[11] = replace(samples[11], turns=conversation("<image><image><image><image> What?", "Four."))
    write_shards(tmp_path / "shards", samples, samples_per_shard=8)
    source = Source("mixed", ShardFolder(tmp_path / "shards", "mixed"), encoder)
    refused = cache(source)
    assert len(refused) == 4
    run = make_run(tmp_path / "shards")
    with build_loader(run, tokenizer, 0, 1) as plain, build_loader(run, tokenizer, 0, 1, features=KEY) as cached:
        slots = [[step.slots for step in loader] for loader in (plain, cached)]
    assert slots[0] == slots[1]
    assert {slot.refused for step in slots[0] for slot in step} == {None, "broken_image", "too_long", "placeholder_mismatch"}


def test_a_restored_picture_is_not_passed_over(tmp_path, tokenizer, encoder):
    """Refused when its features were cached, whole again since, as the index always said: not lost without a word."""
    write_shards(tmp_path / "shards", make_samples(12))
    shard = tmp_path / "shards" / "shard-000000.tar"
    whole = shard.read_bytes()
    source = Source("mixed", ShardFolder(tmp_path / "shards", "mixed"), encoder)
    sample, _ = first_with_tiles(source)
    flip(shard, int(source.folder.index(0).images_of(sample)[0, 0]) + 40)
    assert cache(source) == [sample]
    shard.write_bytes(whole)
    run = make_run(tmp_path / "shards")
    with build_loader(run, tokenizer, 0, 1, features=KEY) as loader, pytest.raises(DataError, match="restored"):
        list(loader)


def test_damaged_features_name_the_file_and_what_to_do(source):
    cache(source)
    sample, _ = first_with_tiles(source)
    path = file_of(source, sample)
    flip(path, path.stat().st_size - 3)
    last = max(number for number in range(source.folder.entries[0].samples) if source.plan(number).tiles)
    with pytest.raises(DataError, match=r"features of .* are damaged \(SHA-256 differs\). Delete .*cache-features") as refused:
        read(source, last)
    assert str(path) in str(refused.value)
    assert read(source, sample)[1].isfinite().all(), "the others are still good"


def test_a_changed_shard_is_refused_as_without_a_cache(source):
    cache(source)
    sample, _ = first_with_tiles(source)
    shard, place = source.folder.locate(sample)
    flip(source.folder.path / source.folder.entries[shard].name, int(source.folder.index(shard).records[place, 0]) + 30)
    with pytest.raises(SampleRefused, match="changed_bytes"):
        source.read(sample)
    with pytest.raises(SampleRefused, match="changed_bytes"):
        read(source, sample)


@pytest.mark.parametrize("damage", ["header", "length", "cut", "empty"])
def test_a_damaged_file_is_refused_before_it_is_used(source, damage):
    cache(source)
    sample, _ = first_with_tiles(source)
    path = file_of(source, sample)
    content = path.read_bytes()
    at = content.index(b'"I64"')
    path.write_bytes({"header": content[:at] + b'"I65"' + content[at + 5:], "length": b"\xff" * 8 + content[8:],
                      "cut": content[:-10], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"is damaged .*Delete .* and make it again"):
        read(source, sample)
    with pytest.raises(DataError, match="is damaged"):
        lacking(source.folder, KEY)


def test_features_of_other_grids_or_shapes_are_refused(source):
    cache(source)
    sample, grids = first_with_tiles(source)
    with pytest.raises(DataError, match=r"in the grids .* planned are 1 in \[\(1, 1\)\]"):
        CachedFeatures(source.folder, KEY).read(sample, [(1, 1)], torch.empty(1, L, C))
    for other in (replace(KEY, tokens=L + 1), replace(KEY, dtype=torch.bfloat16)):
        with pytest.raises(DataError, match="wanted is"):
            CachedFeatures(source.folder, other).read(sample, grids, torch.empty(1, 1, 1))


def test_an_interrupted_file_leaves_nothing(source):
    entry = source.folder.entries[0]
    path = source.folder.path / feature_file_name(entry.name, KEY.name)
    with pytest.raises(KeyboardInterrupt), writing(path, entry, KEY.parts, 3, (L, C), KEY.dtype, 7) as writer:
        writer.add(0, slice(0, 1), [(1, 1)], b"{}", torch.zeros(1, L, C))
        raise KeyboardInterrupt
    assert not list(source.folder.path.glob("*features*")) and not list(source.folder.path.glob(".*"))


def test_what_a_folder_lacks_is_told(source):
    folder = source.folder
    assert not any_cached(folder)
    assert "mixed lacks them for 3 of 3 shards, the first shard-000000.tar (nvlm data" in lacking(folder, KEY)
    cache(source)
    assert any_cached(folder) and lacking(folder, KEY) is None and all(is_cached(folder, shard, KEY) for shard in range(3))
    other = replace(KEY, parts={"weights": "xyz"})
    assert lacking(folder, other).endswith("is of something else: weights is abc there and xyz here")
    (folder.path / feature_file_name(folder.entries[1].name, KEY.name)).unlink()
    assert "1 of 3 shards, the first shard-000001.tar" in lacking(folder, KEY)


def test_features_of_another_version_of_a_shard_do_not_count(source, tmp_path, encoder):
    cache(source)
    assert read_about(file_of(source, 0))["shard"] == "shard-000000.tar"
    again = tmp_path / "again"
    write_shards(again, make_samples(59), samples_per_shard=25)
    for path in source.folder.path.glob("*.features-*"):
        shutil.copy(path, again)
    changed = ShardFolder(again, "mixed")
    assert [is_cached(changed, shard, KEY) for shard in range(3)] == [True, True, False]     # the last has a sample less
    assert "the shard itself has changed since" in lacking(changed, KEY)
    with pytest.raises(DataError, match="another version of shard-000002.tar"):
        CachedFeatures(changed, KEY).holds(58)


def test_text_needs_no_features(tmp_path, encoder, tokenizer):
    texts = [replace(sample, images=(), turns=conversation("What is it?", "Text.")) for sample in make_samples(12)]
    write_shards(tmp_path / "text", texts)
    assert lacking(ShardFolder(tmp_path / "text", "text"), KEY) is None
    with build_loader(make_run(tmp_path / "text"), tokenizer, 0, 1, features=KEY) as loader:
        assert all(row.features_nLC is None and not len(row.tiles_nCPP) for step in loader for row in step.rows)


def test_a_row_takes_tiles_or_features(source):
    sample, _ = first_with_tiles(source)
    plan = source.plan(sample)
    whole = source.encoder.encode(source.read(sample), plan)
    cached = source.encoder.encode(replace(source.read(sample), images=()), plan, features=torch.zeros(plan.tiles, L, C))
    assert pack_row([cached, cached], 400, 0, 28).features_nLC.shape == (2 * plan.tiles, L, C)
    with pytest.raises(DataError, match="it takes one or the other"):
        pack_row([whole, cached], 400, 0, 28)


def test_the_key_changes_with_everything_that_features_depend_on(tokenizer):
    def key(model=None, weights="abc", dtype=torch.float32, **data) -> FeatureKey:
        return feature_key(Encoder(model or small_model(), schema.Data(**{**DATA, **data}), tokenizer), weights, dtype)

    base = key()
    assert (base.tokens, base.width, base.tile_bytes) == (16, 3200, 16 * 3200 * 4)
    vision = replace(small_model().vision, norm_eps=1e-5)
    others = {"weights": key(weights="abd"), "precision": key(dtype=torch.bfloat16),
              "encoder": key(replace(small_model(), vision=vision)), "data.max_tiles": key(max_tiles=4),
              "data.thumbnail": key(thumbnail=False), "data.pack_tiles": key(pack_tiles=13),
              "tokens of a sample": key(max_tokens=199), "text": key(format="pretrain"),
              "tokens of a picture": key(small_model("nvlm_x"))}
    assert len({other.name for other in others.values()} | {base.name}) == len(others) + 1
    assert all(part in base.differences(other.parts) for part, other in others.items())
    named = replace(small_model(), vision=replace(small_model().vision, weights="elsewhere", layer_scale_init=7.0))
    assert {key(named).name, key(workers=0, prefetch=7, packing=False, max_refused=1.0).name} == {base.name}
    assert json.loads(json.dumps(dict(base.parts))) == dict(base.parts)
