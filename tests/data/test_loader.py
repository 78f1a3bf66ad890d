import io
import shutil
import tarfile
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from data_toys import conversation, encoded, make_samples, picture, small_model

from data_prep.shards import index_folder, write_shards
from nvlm_train.config import schema
from nvlm_train.contracts import Sample
from nvlm_train.data import counts
from nvlm_train.data.loader import build_loader, validation_rows
from nvlm_train.data.records import write_record
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.storage import LocalFolder
from nvlm_train.errors import ConfigError, DataError


def make_run(blend, steps=4, global_batch=8, validation=None, **data) -> schema.Run:
    settings = {"max_tokens": 200, "pack_tokens": 256, "pack_tiles": 14, **data}
    return schema.Run("test", "sft", model=small_model(), train=schema.Train(steps=steps, global_batch=global_batch, seed=3),
                      data=schema.Data(blend={name: schema.Source(str(path)) for name, path in blend.items()},
                                       validation={name: schema.Source(str(path)) for name, path in (validation or {}).items()}, **settings))


@pytest.fixture
def run(shard_folder):
    return make_run({"mixed": shard_folder})


@pytest.fixture(autouse=True)
def no_thread_survives():
    before = set(threading.enumerate())
    yield
    assert [thread.name for thread in set(threading.enumerate()) - before] == []


def everything(run, tokenizer, rank=0, size=1, **options):
    with build_loader(run, tokenizer, rank, size, **options) as loader:
        return list(loader)


def same(a, b) -> bool:
    """Whether two steps are bit-equal."""
    if (a.step, a.cursor, list(a.slots), len(a.rows)) != (b.step, b.cursor, list(b.slots), len(b.rows)):
        return False
    return all(x.keys == y.keys and all(torch.equal(getattr(x, f), getattr(y, f)) for f in (
        "tokens_T", "positions_T", "labels_T", "loss_weights_T", "cu_seqlens", "tiles_nCPP", "tile_starts_n", "reads_s4", "memory_tags_mG"))
        for x, y in zip(a.rows, b.rows, strict=True))


def test_steps_hold_exactly_their_slots(run, tokenizer):
    steps = everything(run, tokenizer)
    assert [(step.step, step.cursor) for step in steps] == [(1, 8), (2, 16), (3, 24), (4, 32)]
    for step in steps:
        assert [slot.n for slot in step.slots] == list(range(step.cursor - 8, step.cursor))
        assert sorted(key for row in step.rows for key in row.keys) == sorted(slot.key for slot in step.slots)
        assert all(len(row.tokens_T) == 256 and len(row.tiles_nCPP) <= 14 for row in step.rows)


def test_tiles_for_a_gpu_are_pinned_by_the_threads_that_build_rows(run, tokenizer, monkeypatch):
    """Not by the one that trains, which would copy while the GPU waits. (Pinning itself needs a GPU: tests/gpu.)"""
    pinned = []

    def pin(tensor):
        pinned.append((threading.current_thread().name, tensor.numel()))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    plain = everything(run, tokenizer)
    assert pinned == []
    assert all(same(a, b) for a, b in zip(everything(run, tokenizer, pinned=True), plain, strict=True))
    rows = [row for step in plain for row in step.rows if len(row.tiles_nCPP)]
    assert sorted(size for _, size in pinned) == sorted(row.tiles_nCPP.numel() for row in rows)
    assert threading.current_thread().name not in {name for name, _ in pinned}


def test_weights_by_token_give_shares_of_tokens(shard_folder, tmp_path, tokenizer):
    """Half and half of the tokens, though a sample of one source is more than twice as long."""
    texts = [Sample(f"t{i}", "short", (), conversation("Why?", "Because " + "so " * (i % 7))) for i in range(40)]
    write_shards(tmp_path / "short", texts)
    run = make_run({"mixed": shard_folder, "short": tmp_path / "short"}, steps=25, global_batch=40)
    tokens = {}
    for weigh_by in ("samples", "tokens"):
        given = Counter()
        for step in everything(replace(run, data=replace(run.data, weigh_by=weigh_by)), tokenizer):
            for row in step.rows:
                lengths = row.cu_seqlens.diff().tolist()
                for source, length in zip(row.sources, lengths):
                    given[source] += length
        tokens[weigh_by] = given["short"] / given.total()
    assert tokens["samples"] < 0.35 and tokens["tokens"] == pytest.approx(0.5, abs=0.02)
    hopeless = [Sample("a", "s", (), conversation("Why?", ""))]
    write_shards(tmp_path / "hopeless", hopeless)
    with pytest.raises(DataError, match="none of 1 samples of hopeless"):
        build_loader(make_run({"hopeless": tmp_path / "hopeless"}, weigh_by="tokens"), tokenizer, 0, 1)


def test_workers_and_prefetch_change_nothing(run, tokenizer):
    reference = everything(run, tokenizer)
    for workers, prefetch in ((0, 1), (1, 1), (3, 4)):
        other = replace(run, data=replace(run.data, workers=workers, prefetch=prefetch))
        assert all(map(same, reference, everything(other, tokenizer)))


@pytest.mark.parametrize("start", [8, 24, 32])
def test_resuming_is_one_integer(run, tokenizer, start):
    whole, rest = everything(run, tokenizer), everything(run, tokenizer, start=start)
    assert len(rest) == 4 - start // 8 and all(map(same, whole[start // 8:], rest))


@pytest.mark.parametrize("size, multiple", [(2, 1), (3, 1), (2, 4)])
def test_ranks_share_the_same_slots(run, tokenizer, size, multiple):
    alone = everything(run, tokenizer)
    ranks = [everything(run, tokenizer, rank, size, multiple=multiple) for rank in range(size)]
    for number, reference in enumerate(alone):
        shares = [steps[number] for steps in ranks]
        assert sorted(slot.n for share in shares for slot in share.slots) == [slot.n for slot in reference.slots]
        assert len({len(share.rows) for share in shares}) == 1 and len(shares[0].rows) % multiple == 0
        assert {row.keys for share in shares for row in share.rows} - {()} == {row.keys for row in reference.rows} - {()}


def test_resume_on_other_ranks_repeats_and_loses_nothing(run, tokenizer):
    """One epoch: the first half on 1 rank, the rest on 2, with other workers."""
    run = replace(run, train=replace(run.train, steps=10, global_batch=6))
    first = everything(run, tokenizer)[:5]
    other = replace(run, data=replace(run.data, workers=3))
    second = [step for rank in range(2) for step in everything(other, tokenizer, rank, 2, start=first[-1].cursor)]
    seen = Counter(slot.key for step in [*first, *second] for slot in step.slots)
    assert seen == {sample.key: 1 for sample in make_samples(60)}


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_resume_gives_the_samples_of_the_uninterrupted_run(run, tokenizer, size, workers):
    """From every step, on any number of ranks, with any number of threads."""
    whole = [[(slot.n, slot.key) for slot in step.slots] for step in everything(run, tokenizer)]
    run = replace(run, data=replace(run.data, workers=workers))
    for done in range(len(whole)):
        ranks = [everything(run, tokenizer, rank, size, start=done * 8) for rank in range(size)]
        again = [sorted((slot.n, slot.key) for rank in ranks for slot in rank[step].slots) for step in range(len(whole) - done)]
        assert again == whole[done:]


def test_without_packing_each_sample_has_a_row(run, tokenizer):
    unpacked = everything(replace(run, data=replace(run.data, packing=False)), tokenizer)
    for step, packed in zip(unpacked, everything(run, tokenizer), strict=True):
        assert len(step.rows) == 8 and all(len(row.keys) == 1 for row in step.rows)
        assert len(packed.rows) < 8
        assert sum(row.loss_weights_T.sum() for row in step.rows) == sum(row.loss_weights_T.sum() for row in packed.rows)


@pytest.fixture
def spoiled(tmp_path):
    """24 samples: 2 with JPEGs that break only when decoded, 1 without a header, 1 with too many placeholders, 1 unsupervised,
    1 too long; the rest good."""
    good = make_samples(18, text_only_every=100)
    hole = bytearray(encoded(picture(120, 120)))
    hole[len(hole) // 2:len(hole) // 2 + 200] = bytes(200)
    bad = [Sample("hole", "x", (bytes(hole),), conversation("?", "!")),
           Sample("cut", "x", (encoded(picture(90, 90))[:-400],), conversation("?", "!")),
           Sample("mismatch", "x", (encoded(picture(30, 30)),), conversation("<image> <image>", "!")),
           Sample("silent", "x", (), conversation("?", "!")[:1]),
           Sample("long", "x", (), conversation("?", "so long " * 300))]
    write_shards(tmp_path / "spoiled", [*good, *bad])
    with tarfile.open(tmp_path / "spoiled" / "html.tar", "w") as tar:
        for name, data in (("html.json", write_record(conversation("?", "!"), ["html.0.jpg"], {})), ("html.0.jpg", b"<html>")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    index_folder(tmp_path / "spoiled")
    return tmp_path / "spoiled"


REASONS = {"hole": "broken_image", "cut": "broken_image", "html": "broken_image", "mismatch": "placeholder_mismatch",
           "silent": "nothing_supervised", "long": "too_long"}


def test_bad_samples_leave_their_slot_empty(spoiled, tokenizer):
    run = make_run({"x": spoiled}, steps=4, global_batch=6)
    for size in (1, 2):
        slots, refused, keys = [], Counter(), []
        for rank in range(size):
            with build_loader(run, tokenizer, rank, size) as loader:
                for step in loader:
                    slots += step.slots
                    keys += [key for row in step.rows for key in row.keys]
                refused += loader.refused
                assert loader.slots == sum(1 for slot in slots) if size == 1 else loader.slots > 0
        assert sorted(slot.n for slot in slots) == list(range(24))   # one epoch, each slot once, refused or not
        assert {slot.key: slot.refused for slot in slots if slot.refused} == REASONS
        assert refused == Counter(REASONS.values())
        assert sorted(keys) == sorted(slot.key for slot in slots if not slot.refused)


def test_a_sample_lost_while_decoding_moves_no_other(spoiled, tmp_path, tokenizer):
    """The same folder with whole pictures in place of the two broken ones (same size, so the same costs)."""
    healed = tmp_path / "healed"
    shards = ShardFolder(spoiled, "x")
    fixed = {"hole": encoded(picture(120, 120)), "cut": encoded(picture(90, 90))}
    first, second = ([shards.read(number) for number in range(entry_start, entry_end)] for entry_start, entry_end in ((0, 1), (1, 24)))
    write_shards(healed, [replace(sample, images=(fixed[sample.key],)) if sample.key in fixed else sample for sample in second])
    (healed / "shard-000000.tar").rename(healed / "shard-000000.tar.keep")
    for path in healed.glob("*.json"):
        path.unlink()
    shutil.copy(spoiled / "html.tar", healed)
    (healed / "shard-000000.tar.keep").rename(healed / "shard-000000.tar")
    index_folder(healed)
    assert first[0].key == "html"
    broken, whole = (everything(make_run({"x": folder}, steps=4, global_batch=6), tokenizer) for folder in (spoiled, healed))
    for step, reference in zip(broken, whole, strict=True):
        assert len(step.rows) == len(reference.rows)
        for row, other in zip(step.rows, reference.rows, strict=True):
            assert row.keys == tuple(key for key in other.keys if key not in fixed)
            assert len(row.tiles_nCPP) == len(row.tile_starts_n)


def test_an_error_in_a_thread_reaches_the_caller(run, tokenizer, shard_folder, tmp_path):
    copy = shutil.copytree(shard_folder, tmp_path / "copy")
    with build_loader(make_run({"mixed": copy}), tokenizer, 0, 1) as loader:
        next(loader)
    with build_loader(make_run({"mixed": copy}), tokenizer, 0, 1) as loader:
        for path in copy.glob("*.tar"):
            path.write_bytes(path.read_bytes()[:1024])
        for _ in range(2):   # again when asked again: a failed step is not passed over
            with pytest.raises(DataError, match="truncated while in use"):
                list(loader)


def test_a_stalled_read_names_the_shard(run, tokenizer, monkeypatch):
    release = threading.Event()
    read = LocalFolder.read_at
    build_loader(run, tokenizer, 0, 1).close()      # its texts are counted

    def stall(self, *where):
        release.wait(20)
        return read(self, *where)
    monkeypatch.setattr(LocalFolder, "read_at", stall)
    loader = build_loader(run, tokenizer, 0, 1, stall_s=0.2)
    try:
        with pytest.raises(DataError, match=r"reading mixed-\d+ of .*shard-00000\d\.tar for \d+ s"):
            next(loader)
    finally:
        release.set()
        loader.close()


def test_closing_early_and_twice(run, tokenizer):
    loader = build_loader(run, tokenizer, 0, 1)
    next(loader)
    started = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - started < 4
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_the_end_stays_the_end(run, tokenizer):
    with build_loader(run, tokenizer, 0, 1, start=24) as loader:
        assert len(list(loader)) == 1
        assert list(loader) == []


def test_a_blend_that_runs_out_is_refused_before_the_first_step(shard_folder, tokenizer):
    run = make_run({"mixed": shard_folder}, steps=10)
    finite = replace(run, data=replace(run.data, blend={"mixed": schema.Source(str(shard_folder), 1.0, 1.0)}))
    with pytest.raises(ConfigError, match="mixed runs out: 80 slots"):
        build_loader(finite, tokenizer, 0, 1)
    with pytest.raises(ConfigError, match=r"data\.blend: it is empty"):
        build_loader(make_run({}), tokenizer, 0, 1)


def test_counts_are_kept_and_checked(run, tokenizer, tmp_path, shard_folder, monkeypatch):
    copy = shutil.copytree(shard_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.tokens-*"))
    copied = make_run({"mixed": copy})
    reference = everything(copied, tokenizer)
    files = sorted(copy.glob("*.tokens-*.json"))
    assert len(files) == 3
    calls = []
    monkeypatch.setattr(ShardFolder, "records", lambda self, shard: calls.append(shard))
    assert all(map(same, reference, everything(copied, tokenizer))) and not calls   # nothing is counted twice
    monkeypatch.undo()
    files[0].write_text(files[0].read_text().replace('"shard_sha256":"', '"shard_sha256":"0'))   # of another shard: counted again
    assert all(map(same, reference, everything(copied, tokenizer)))


def test_counts_of_a_read_only_folder_go_to_the_users_cache(shard_folder, tokenizer, tmp_path, monkeypatch):
    copy = shutil.copytree(shard_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.tokens-*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = counts.write_json

    def refuse_beside_shards(path, content):
        if path.parent == copy:
            raise PermissionError("read-only")
        write(path, content)
    monkeypatch.setattr(counts, "write_json", refuse_beside_shards)
    everything(make_run({"mixed": copy}), tokenizer)
    assert len(list((tmp_path / "cache").rglob("*.tokens-*.json"))) == 3 and not list(copy.glob("*.tokens-*"))


def test_validation_is_the_same_on_any_number_of_ranks(shard_folder, tokenizer):
    run = make_run({"mixed": shard_folder}, validation={"mixed": shard_folder})
    whole = validation_rows(run, tokenizer, 0, 1, limit=3)
    assert len({key for row in whole for key in row.keys}) == sum(len(row.keys) for row in whole) == 24
    ranks = [validation_rows(run, tokenizer, rank, 2, limit=3) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    assert {row.keys for rank in ranks for row in rank} - {()} == {row.keys for row in whole} - {()}
    again = validation_rows(run, tokenizer, 0, 1, limit=3)
    assert all(torch.equal(a.tokens_T, b.tokens_T) and torch.equal(a.tiles_nCPP, b.tiles_nCPP) for a, b in zip(whole, again, strict=True))
    everyone = validation_rows(run, tokenizer, 0, 1, limit=1000)
    assert sum(len(row.keys) for row in everyone) == 60   # never a sample twice
    assert len(validation_rows(make_run({"mixed": shard_folder}), tokenizer, 0, 1, limit=3)) == 0
