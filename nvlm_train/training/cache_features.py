"""`nvlm data cache-features`: what a stage's frozen vision encoder makes of every picture, stored beside the shards
(docs/features.md).

The encoder comes by the way it comes to training; the rest of the model is not built. Data ranks share out the shards, and a
shard whose file is complete is left alone, so that an interrupted job goes on where it was.
"""

import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nvlm_train.config.layers import may_train
from nvlm_train.config.rules import check_world
from nvlm_train.config.schema import Connector, Language, Layout, Run
from nvlm_train.config.schema import Engine as EngineSettings
from nvlm_train.data.encode import Encoder
from nvlm_train.data.feature_files import feature_file_name
from nvlm_train.data.features import FeatureKey, feature_key, has_pictures, is_cached
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.sources import Source, cache_of
from nvlm_train.data.tokenizer import Tokenizer, load_tokenizer
from nvlm_train.data.workers import Workers
from nvlm_train.engine.agree import on_every_rank, on_main
from nvlm_train.engine.folders import as_size
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.training.backbones import load_backbones_of, load_components
from nvlm_train.training.builtin import with_builtin_data
from nvlm_train.training.encode_shards import Progress, encode_shard, planned
from nvlm_train.training.stages import build_engine
from nvlm_train.training.start import resume_point, start_of

STALE_S = 600.0     # an unfinished file that nobody has written to for so long was left by a job that died

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """One shard to encode: number of its source in the list of sources, number of the shard in the source's folder."""

    source: int
    shard: int


def cache_features_command(runs: Sequence[Run], engine_of: Callable[[Run], Engine] = build_engine) -> None:
    """Cache the features of all shards of a stage's blend and validation sources. Called on every rank with the same runs.

    Raises ConfigError: several stages, or one that trains the encoder. DataError: damaged data, no room, no right to write.
    """
    if len(runs) > 1:
        raise ConfigError("features are cached for one stage at a time, since stages may cut pictures into tiles differently: "
                          "add " + " or ".join(f"stage={run.stage}" for run in runs))
    run = runs[0]
    if may_train(run.train.trainable, "vision"):
        raise ConfigError(f"stage {run.stage} trains the vision encoder (train.trainable={list(run.train.trainable)}): its "
                          "features change with every step, so there is nothing to cache")
    lean = encoder_only(run)
    check_world(lean, int(os.environ.get("WORLD_SIZE", "1")))
    with closing(engine_of(lean)) as engine:
        tokenizer = load_tokenizer(run.model.tokenizer, run.data.template)
        run = with_builtin_data(run, engine)
        _load_encoder(run, lean, tokenizer, engine)
        encoder = Encoder(run.model, run.data, tokenizer)
        _cache(run, encoder, feature_key(encoder, engine.encoder_fingerprint(), engine.dtype), engine)


def encoder_only(run: Run) -> Run:
    """The run with its vision encoder and the least of everything else: one narrow decoder layer, no pipeline."""
    tensor = run.layout.tensor
    language = Language(layers=1, hidden=8 * tensor, heads=tensor, kv_heads=tensor, head_dim=8, ffn=8 * tensor, vocab=8 * tensor)
    connector = Connector(shuffle=run.model.connector.shuffle, layers=1)
    model = replace(run.model, architecture="nvlm_d", connector=connector, language=language, recompute="none", recompute_parts=())
    train = replace(run.train, trainable=("connector",), lr_multipliers={})
    return replace(run, model=model, train=train, layout=Layout(tensor=tensor, share_tiles=run.layout.share_tiles),
                   engine=EngineSettings())


def _load_encoder(run: Run, lean: Run, tokenizer: Tokenizer, engine: Engine) -> None:
    """The weights that training of this stage would start from or go on with."""
    _, start = resume_point([run]) or (0, start_of(run, None))
    if start.checkpoint is not None:
        load_components(start.checkpoint, engine, ["vision"], run, tokenizer)
    else:
        load_backbones_of(lean, engine, tokenizer)
    origin = start.checkpoint or run.model.vision.weights or "a start from random weights"
    log.info("%s: the encoder is that of %s", run.stage, origin)


def _cache(run: Run, encoder: Encoder, key: FeatureKey, engine: Engine) -> None:
    began = time.monotonic()
    sources: list[Source] = []

    def open_them() -> None:
        if engine.reads_data:
            sources.extend(_sources(run, encoder))

    on_every_rank(engine, "opening the data", open_them, DataError)
    works = on_main(engine, "looking for cached features", lambda: _missing(sources, key), DataError)
    mine = works[engine.data_rank::engine.data_size]
    tiles = _announce(sources, mine, key, engine)
    progress = Progress(tiles, engine)
    with closing(Workers(run.data.workers if engine.reads_data else 0)) as workers:
        for work in mine:
            source = sources[work.source] if engine.reads_data else None
            encode_shard(engine, source, work.shard, key, run.data.pack_tiles, workers, progress)
    while engine.any_rank(False):   # in step with replicas that have more to do (`encode_shard`)
        pass
    done = engine.gather_objects(progress.tiles if engine.reads_data else 0)
    seconds = time.monotonic() - began
    log.info("%s: %s tiles of %s shards cached in %.0f s", run.stage, f"{sum(done):,}", f"{len(works):,}", seconds)


def _sources(run: Run, encoder: Encoder) -> list[Source]:
    """Every folder of the blend and of the validation sources, each once."""
    folders = {Path(source.path).resolve(): ShardFolder(source.path, name, cache_of(run.data))
               for blend in (run.data.validation, run.data.blend) for name, source in blend.items()}
    return [Source(folder.source, folder, encoder) for folder in folders.values()]


def _missing(sources: Sequence[Source], key: FeatureKey) -> list[Work]:
    """The shards with pictures that have no complete file under this key; unfinished files of dead jobs are removed."""
    works, kept = [], 0
    for number, source in enumerate(sources):
        folder = source.folder
        _remove_leftovers(folder.path, key)
        for shard in range(len(folder.entries)):
            if is_cached(folder, shard, key):
                kept += 1
            elif has_pictures(folder, shard):
                works.append(Work(number, shard))
    log.info("key %s: %s shards to encode, %s are cached already", key.name, f"{len(works):,}", f"{kept:,}")
    return works


def _remove_leftovers(folder: Path, key: FeatureKey) -> None:
    for path in folder.glob(f".{feature_file_name('*', key.name)}.*"):
        with suppress(OSError):     # finished by its writer just now; or not ours to remove, which is found out soon enough
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
                log.warning("removed %s, left by a job that was interrupted", path)


def _announce(sources: Sequence[Source], mine: Sequence[Work], key: FeatureKey, engine: Engine) -> int:
    """This rank's tiles. Says what all ranks' will take; raises DataError on every rank if there is no room, before any work."""
    own: Counter[int] = Counter()      # number of a source -> tiles

    def count() -> Counter:
        for work in mine if engine.reads_data else ():
            own[work.source] += sum(sample.plan.tiles for sample in planned(sources[work.source], work.shard))
        return own

    total = sum(on_every_rank(engine, "planning", count, DataError), Counter())

    def check() -> None:
        size = as_size(total.total() * key.tile_bytes)
        log.info("%s tiles of %s bytes: %s needed", f"{total.total():,}", f"{key.tile_bytes:,}", size)
        _check_room({sources[number].folder.path: tiles * key.tile_bytes for number, tiles in total.items()})

    on_main(engine, "making room for features", check, DataError)
    return own.total()


def _check_room(needed: dict[Path, int]) -> None:
    """needed: bytes by folder; several may lie on one disk. Raises DataError with both numbers, or if one is read-only."""
    disks: dict[int, Counter] = {}
    for folder, size in needed.items():
        try:
            with tempfile.TemporaryFile(dir=folder):
                disks.setdefault(folder.stat().st_dev, Counter())[folder] += size
        except OSError as error:
            raise DataError(f"features cannot be written beside the shards in {folder}: {error.strerror}. Let the folder's owner "
                            "cache them, or copy the shards to a folder of your own") from error
    for sizes in disks.values():
        folder, size = next(iter(sizes)), sizes.total()
        if (free := shutil.disk_usage(folder).free) < size * 1.01:      # indexes and the file system's own
            raise DataError(f"features need {as_size(size * 1.01)}, and the disk of {folder} has {as_size(free)} free. Free some "
                            "space, or cache fewer tiles (data.max_tiles, data.thumbnail)")
