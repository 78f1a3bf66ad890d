"""Whether a stage reads the vision encoder's features from beside its shards, or computes them; and what is said about it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from nvlm_train.config.layers import may_train
from nvlm_train.config.schema import Run
from nvlm_train.data.encode import Encoder
from nvlm_train.data.feature_files import COMMAND
from nvlm_train.data.features import FeatureKey, any_cached, feature_key, has_pictures, lacking
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.sources import cache_of
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.engine.agree import on_every_rank
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import DataError

log = logging.getLogger(__name__)
NOTHING = ""    # in place of a reason: there is nothing to say


@dataclass(frozen=True)
class StageFeatures:
    """The key under which each blend's features are read; None: its pictures are decoded and encoded."""

    blend: FeatureKey | None = None
    validation: FeatureKey | None = None


def find_features(run: Run, tokenizer: Tokenizer, engine: Engine) -> StageFeatures:
    """Look for cached features of the training blend and of the validation sources, each for itself. A collective.

    Call it once the engine has the weights that the stage starts from. `data.features=auto` takes a blend's features if every
    shard with pictures has them, and says in one line why not if some are there. Raises DataError: a damaged file, or `require` and
    something is lacking.
    """
    if run.data.features == "off" or may_train(run.train.trainable, "vision"):
        return StageFeatures()
    key, found = None, {}
    for name in ("blend", "validation"):
        folders: list[ShardFolder] = []
        reason = _agreed(engine, name, partial(_open_and_look, run, engine, name, folders))
        if reason is None:
            # Hashing the encoder takes seconds where it is large: only if there may be a use for it.
            key = key or feature_key(Encoder(run.model, run.data, tokenizer), engine.encoder_fingerprint(), engine.dtype)
            reason = _agreed(engine, name, partial(_under, key, folders))
        if reason is None:
            found[name] = key
            log.info("%s: data.%s: the vision encoder's features are read from beside the shards (key %s)",
                     run.stage, name, key.name)
        elif reason != NOTHING:
            if run.data.features == "require":
                raise DataError(f"data.features=require, and those of data.{name} cannot be read: {reason}")
            log.info("%s: data.%s: no cached features, the vision encoder runs: %s", run.stage, name, reason)
    return StageFeatures(**found)


def _agreed(engine: Engine, name: str, reason: Callable[[], str | None]) -> str | None:
    """What `reason` finds in a blend's folders, the same on every rank: the first reason of a rank against it, if there is one."""
    reasons = on_every_rank(engine, f"looking for cached features of data.{name}", reason, DataError)
    return next(filter(None, reasons), reasons[0])


def _open_and_look(run: Run, engine: Engine, name: str, folders: list[ShardFolder]) -> str | None:
    """Fill `folders` where a blend is read, and take a first look. Validation rows are built on every rank, training rows on those
    that read."""
    if engine.reads_data or name == "validation":
        cache = cache_of(run.data)
        folders.extend(ShardFolder(source.path, source_name, cache) for source_name, source in getattr(run.data, name).items())
    return _at_first_sight(run.data.features == "require", folders)


def _at_first_sight(required: bool, folders: Sequence[ShardFolder]) -> str | None:
    """Why features cannot be used, whatever the encoder; None if they may be. Who never cached any is not told that there are none."""
    cached = [folder for folder in folders if any_cached(folder)]
    if not cached and not required:
        return NOTHING
    for folder in folders:
        if folder not in cached and any(has_pictures(folder, shard) for shard in range(len(folder.entries))):
            return f"{folder.source} has none ({COMMAND} makes them)"
    return None if cached else NOTHING


def _under(key: FeatureKey, folders: Sequence[ShardFolder]) -> str | None:
    """Why the features under this key cannot be used; None if they can."""
    return next(filter(None, (lacking(folder, key) for folder in folders)), None)
