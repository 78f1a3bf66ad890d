"""Folders of shards behind s3:// and http://, on real servers: the same samples as from a disk, whatever the network does."""

import logging
import os
import shutil
from dataclasses import replace

import pytest
from data_toys import make_samples
from remote_servers import BadNetwork, eventually, web
from test_loader import everything, make_run, same

from data_prep.shards import write_shards
from nvlm_train.data import remote
from nvlm_train.data.loader import build_loader
from nvlm_train.data.shard_cache import ShardCache
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError, SampleRefused

pytest.importorskip("s3fs", reason="the remote extra is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto, an S3 server for tests, is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "shards"
    write_shards(folder, make_samples(60), samples_per_shard=10)
    return folder


@pytest.fixture(scope="module")
def s3():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def network(s3, monkeypatch):
    """The S3 server behind a network that can be told to fail."""
    between = BadNetwork(s3)
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{between.port}"}.items():
        monkeypatch.setenv(name, value)
    import s3fs
    s3fs.S3FileSystem.clear_instance_cache()     # it would keep another test's endpoint
    yield between
    between.close()


@pytest.fixture
def bucket(network, shards, request):
    """The shards' URL."""
    import s3fs
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.mkdir(name)
    files.put(str(shards), f"{name}/data/shards", recursive=True)
    return f"s3://{name}/data/shards"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Short patience, and a cache of its own."""
    monkeypatch.setattr(remote, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def all_samples(folder):
    return [folder.read(number) for number in range(len(folder))]


def kept(cache_folder):
    return {path.name for path in (cache_folder / "shards").glob("*") if len(path.name) == 64}


def test_s3_gives_the_samples_of_the_disk(shards, bucket):
    local, far = ShardFolder(shards, "x"), ShardFolder(bucket, "x")
    assert far.name == bucket and far.fingerprint == local.fingerprint
    assert all_samples(far) == all_samples(local)
    far.verify()
    assert list(far.records(2)) == list(local.records(2))


def test_the_loader_gives_the_same_steps_from_s3_and_from_disk(shards, bucket, tokenizer):
    """Counts are brought along, or made and kept, on this side; nothing is written to the bucket."""
    local = everything(make_run({"mixed": shards}, steps=5), tokenizer)
    for cache_gb in (0.0, 1.0):
        far = everything(make_run({"mixed": bucket}, steps=5, cache_gb=cache_gb), tokenizer)
        assert len(far) == len(local) and all(map(same, local, far))


def test_broken_connections_and_silence_are_survived(shards, bucket, network, caplog):
    far, local = ShardFolder(bucket, "x"), ShardFolder(shards, "x")
    for fault in ("reset", "stall", "refuse"):
        network.cut()
        network.faults[:] = [fault]
        assert far.read(17) == local.read(17)
        assert not network.faults


def test_silence_is_told_and_tried_again(bucket, network, caplog, monkeypatch):
    far = ShardFolder(bucket, "x")
    network.cut()
    network.faults[:] = ["stall"]
    with caplog.at_level(logging.WARNING):
        far.read(3)
    assert "no answer in 1 s; attempt 2 of 5 follows" in caplog.text and "shard-000000.tar" in caplog.text


def test_a_server_that_stays_away_ends_with_the_url_and_what_was_tried(bucket, network):
    far = ShardFolder(bucket, "x")
    network.cut()
    network.faults[:] = ["stall"] * 100
    with pytest.raises(DataError, match=rf"{bucket}/shard-000000\.tar: 5 attempts in \d+ s failed.*no answer in 1 s.*Is the server up"):
        far.read(3)


def test_a_loader_whose_server_goes_away_stops_and_says_so(bucket, network, tokenizer):
    with build_loader(make_run({"mixed": bucket}, steps=5, prefetch=1), tokenizer, 0, 1) as loader:
        next(loader)
        network.cut()
        network.faults[:] = ["refuse"] * 10_000
        with pytest.raises(DataError, match="5 attempts"):
            for _ in range(4):
                next(loader)


def test_whole_shards_are_kept_within_the_limit_and_given_up_oldest_first(shards, bucket, tmp_path):
    sizes = [entry.size for entry in ShardFolder(shards, "x").entries]
    cache = ShardCache(tmp_path / "c", limit=int(2.5 * max(sizes)))
    far = ShardFolder(bucket, "x", cache)
    for pair in ([0, 1], [2, 3], [4, 5]):
        expected = {far.entries[shard].sha256 for shard in pair}
        cache.keep = frozenset(expected)
        far.storage.expect([far.entries[shard] for shard in pair])
        assert eventually(lambda expected=expected: expected <= kept(tmp_path / "c"))
        assert sum(path.stat().st_size for path in (tmp_path / "c" / "shards").iterdir()) <= cache.limit
    far.close()
    assert kept(tmp_path / "c") >= {far.entries[4].sha256, far.entries[5].sha256}


def test_what_is_kept_is_read_without_the_network(shards, bucket, network, tmp_path):
    far = ShardFolder(bucket, "x", ShardCache(tmp_path / "c", limit=10**9))
    far.storage.expect(far.entries)
    assert eventually(lambda: len(kept(tmp_path / "c")) == len(far.entries))
    far.close()
    far.index(0)
    network.close()
    assert all_samples(far) == all_samples(ShardFolder(shards, "x"))


def test_damage_in_the_cache_is_noticed_and_read_again(shards, bucket, tmp_path):
    cache = ShardCache(tmp_path / "c", limit=10**9)
    far = ShardFolder(bucket, "x", cache)
    far.storage.expect(far.entries[:1])
    assert eventually(lambda: cache.has(far.entries[0]))
    far.close()
    path = tmp_path / "c" / "shards" / far.entries[0].sha256
    path.write_bytes(bytes(path.stat().st_size))
    assert far.read(0) == ShardFolder(shards, "x").read(0)
    assert not cache.has(far.entries[0])        # not trusted again


def test_a_shard_that_comes_damaged_is_not_kept(shards, bucket, tmp_path, caplog):
    """The bucket's shard differs from its index in one byte: its sample is refused, the others are used, nothing is kept."""
    import s3fs
    damaged = bytearray((shards / "shard-000000.tar").read_bytes())
    index = ShardFolder(shards, "x").index(0)
    damaged[int(index.records[4][0])] ^= 1
    s3fs.S3FileSystem().pipe_file(f"{bucket}/shard-000000.tar", bytes(damaged))
    far = ShardFolder(bucket, "x", ShardCache(tmp_path / "c", limit=10**9))
    far.storage.expect(far.entries[:1])
    assert eventually(lambda: "came with the SHA-256" in caplog.text)
    far.close()
    assert not kept(tmp_path / "c")
    with pytest.raises(SampleRefused, match="changed_bytes"):
        far.read(4)
    assert far.read(5) == ShardFolder(shards, "x").read(5)


def test_a_window_keeps_only_its_shards(bucket, tokenizer, tmp_path, shards):
    largest = max(entry.size for entry in ShardFolder(shards, "x").entries)
    run = make_run({"mixed": bucket}, steps=7, shuffle_window=20, cache_gb=4.2 * largest / 1e9, cache_dir=str(tmp_path / "c"))
    with build_loader(run, tokenizer, 0, 1) as loader:
        for batch in loader:
            assert batch.rows
    assert 1 <= len(kept(tmp_path / "c")) <= 4


def test_a_cache_too_small_for_the_order_is_told(bucket, tokenizer, tmp_path, caplog):
    run = make_run({"mixed": bucket}, steps=1, cache_gb=1e-6, cache_dir=str(tmp_path / "c"))
    everything(run, tokenizer)
    assert "no shard is kept on the local disk" in caplog.text and "data.shuffle_window" in caplog.text


def test_closing_in_the_middle_of_a_shard_is_no_failure(bucket, tmp_path, network, caplog, monkeypatch):
    """A run that ends leaves no half of a shard and says nothing of it."""
    monkeypatch.setattr(remote, "CHUNK", 1000)
    far = ShardFolder(bucket, "x", ShardCache(tmp_path / "c", limit=10**9))
    far.storage.expect(far.entries)
    assert eventually(lambda: list((tmp_path / "c" / "shards").glob("*.part")))
    far.close()
    assert eventually(lambda: not far.storage._fetcher.is_alive())
    assert not list((tmp_path / "c" / "shards").glob("*.part")) and "SHA-256" not in caplog.text


def test_a_full_disk_only_costs_time(bucket, shards, tmp_path, monkeypatch, caplog):
    far = ShardFolder(bucket, "x", ShardCache(tmp_path / "c", limit=10**9))
    (tmp_path / "c" / "shards").mkdir(parents=True)
    os.chmod(tmp_path / "c" / "shards", 0o555)
    monkeypatch.setattr("nvlm_train.data.shard_cache.fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    far.storage.expect(far.entries)
    assert eventually(lambda: "No space left on device" in caplog.text)
    far.close()
    assert all_samples(far) == all_samples(ShardFolder(shards, "x"))


def test_a_changed_folder_is_noticed_behind_copied_indexes(bucket, shards, tmp_path):
    import s3fs
    ShardFolder(bucket, "x").index(0)
    other = tmp_path / "other"
    write_shards(other, make_samples(30), samples_per_shard=10)
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.rm(bucket, recursive=True)
    files.put(str(other), bucket, recursive=True)
    assert all_samples(ShardFolder(bucket, "x")) == all_samples(ShardFolder(other, "x"))


def test_missing_and_cut_shards_are_told_before_the_first_step(bucket, shards):
    import s3fs
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.pipe_file(f"{bucket}/shard-000001.tar", (shards / "shard-000001.tar").read_bytes()[:-512])
    with pytest.raises(DataError, match=rf"{bucket}/shard-000001\.tar is truncated"):
        ShardFolder(bucket, "x")
    files.rm_file(f"{bucket}/shard-000001.tar")
    with pytest.raises(DataError, match=rf"{bucket}/shard-000001\.tar is in the index and not in the folder \(1 of 6"):
        ShardFolder(bucket, "x")
    files.rm_file(f"{bucket}/index.json")
    with pytest.raises(DataError, match=rf"{bucket} has no index.*upload FOLDER to {bucket}"):
        ShardFolder(bucket, "x")


def test_denied_and_unknown_places(network, monkeypatch):
    with pytest.raises(DataError, match="does not exist|has no index"):
        ShardFolder("s3://nobody-made-this/x", "x")
    for url in ("ftp://host/x", "pipe://rm", "simplecache::s3://bucket/x", "file:///etc"):
        with pytest.raises(DataError, match="s3://, gs://, http://, https://"):
            ShardFolder(url, "x")


def test_the_web_gives_the_samples_of_the_disk(shards, tmp_path):
    with web(shards) as (port, asked):
        far = ShardFolder(f"http://127.0.0.1:{port}/", "x")
        assert all_samples(far) == all_samples(ShardFolder(shards, "x"))
    reads = [name for name, wanted in asked if name.endswith(".tar") and wanted]
    assert len(reads) == 60     # one request a sample, though it has several members


def test_a_web_server_without_byte_ranges_is_refused(shards):
    with web(shards, ranges=False) as (port, _):
        far = ShardFolder(f"http://127.0.0.1:{port}", "x")
        with pytest.raises(DataError, match="does not answer byte ranges"):
            far.read(0)


def test_a_web_folder_without_an_index_or_shard(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "copy")
    with web(copy) as (port, _):
        url = f"http://127.0.0.1:{port}"
        (copy / "shard-000003.tar").unlink()
        with pytest.raises(DataError, match=rf"{url}/shard-000003\.tar"):
            ShardFolder(url, "x")
        (copy / "index.json").unlink()
        with pytest.raises(DataError, match="has no index"):
            ShardFolder(url, "x")


def test_an_index_whose_hashes_are_paths_is_refused(shards, tmp_path):
    """A hash names the copy of a shard in the cache."""
    copy = shutil.copytree(shards, tmp_path / "copy")
    text = (copy / "index.json").read_text()
    (copy / "index.json").write_text(text.replace(ShardFolder(shards, "x").entries[0].sha256, "../../evil"))
    with pytest.raises(DataError, match="SHA-256 '../../evil', which is none"):
        ShardFolder(copy, "x")


def test_two_readers_share_one_cache(bucket, tmp_path):
    """Both want all shards; each shard is fetched by one of them."""
    folders = [ShardFolder(bucket, "x", ShardCache(tmp_path / "c", limit=10**9)) for _ in range(2)]
    for folder in folders:
        folder.storage.expect(folder.entries)
    assert eventually(lambda: len(kept(tmp_path / "c")) == 6)
    for folder in folders:
        folder.close()
    assert not list((tmp_path / "c" / "shards").glob("*.part"))


def test_what_a_dead_process_left_is_removed(shards, tmp_path):
    entry = ShardFolder(shards, "x").entries[0]
    cache = ShardCache(tmp_path / "c", limit=2 * entry.size)
    (tmp_path / "c" / "shards").mkdir(parents=True)
    (tmp_path / "c" / "shards" / f"{'0' * 64}.part").write_bytes(bytes(entry.size + 1))
    assert cache.store(entry, lambda: [(shards / entry.name).read_bytes()])
    assert kept(tmp_path / "c") == {entry.sha256} and not list((tmp_path / "c" / "shards").glob("*.part"))
    with pytest.raises(DataError, match="came with the SHA-256"):
        cache.store(replace(entry, sha256="1" * 64), lambda: [b"x"])
