"""A model ready to be asked: out of a checkpoint of ours under any layout, or out of imported weights."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nvlm_train.config.rules import check_world
from nvlm_train.config.schema import Engine as EngineSettings
from nvlm_train.config.schema import Run
from nvlm_train.data.encode import Encoder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.checkpoint import load, resolve
from nvlm_train.engine.folders import run_dir_of
from nvlm_train.engine.interface import Engine
from nvlm_train.engine.manifest import Manifest, fingerprint
from nvlm_train.engine.weights_folder import TOKENIZER, WeightsFolder, is_weights_folder
from nvlm_train.training.backbones import COMPONENTS, load_backbones_of, load_folder
from nvlm_train.training.stages import build_engine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model, and what it came from.

    checkpoint: a step folder, or a folder of weights, which has no manifest. blind: why it cannot be asked about pictures; None
    if it can.
    """

    run: Run
    engine: Engine
    encoder: Encoder
    checkpoint: Path
    manifest: Manifest | None
    blind: str | None = None

    @property
    def run_dir(self) -> Path | None:
        """The run directory that the checkpoint lies in; None for weights, and for a checkpoint that was moved out of one."""
        return run_dir_of(self.checkpoint) if self.manifest else None


@dataclass(frozen=True)
class Empty:
    """A model whose weights come from one checkpoint after the other."""

    run: Run
    engine: Engine
    encoder: Encoder

    def fill(self, step: Path) -> None:
        """Load a step folder. A collective. Raises CheckpointError."""
        load(step, self.engine, fingerprint(self.run, self.encoder.tokenizer.fingerprint), model_only=True)


def open_empty(run: Run) -> Empty:
    """Build the engine. A checkpoint holds every weight, so the backbones that training began with need not be there."""
    bare = _without_weights(run, COMPONENTS)
    return Empty(bare, *_build(bare))


def open_model(runs: Sequence[Run], checkpoint: str) -> Model:
    """Build the engine and load what is at `checkpoint`: the newest step of a run or a stage, a step, or a folder of weights.

    Of a folder of weights every component is taken that it holds; the others are what the run would start training with.
    A collective. Raises CheckpointError, ConfigError.
    """
    if is_weights_folder(checkpoint):
        return _open_weights(runs[-1], Path(checkpoint).expanduser())
    path = resolve(checkpoint)
    manifest = Manifest.read(path)
    empty = open_empty(next((run for run in runs if run.stage == manifest.stage), runs[-1]))
    empty.fill(path)
    return Model(empty.run, empty.engine, empty.encoder, path, manifest)


def _open_weights(run: Run, path: Path) -> Model:
    held = [name for name in COMPONENTS if name in WeightsFolder.read(path).sizes.components]
    run = _with_their_tokenizer(_without_weights(run, held), path)
    engine, encoder = _build(run)
    load_backbones_of(run, engine, encoder.tokenizer)
    load_folder(path, engine, held, run, encoder.tokenizer)
    blind = None
    if "vision" not in held and run.model.vision.weights is None:
        blind = (f"{path} holds {' and '.join(held)}, and its vision encoder would be a random one: it cannot be asked about "
                 "pictures. Ask without them, or give a checkpoint of a trained model")
    return Model(run, engine, encoder, path, None, blind)


def _with_their_tokenizer(run: Run, path: Path) -> Run:
    """Where the recipe's tokenizer is not there, as when the weights were imported to another place than it expects, the weights'."""
    named = run.model.tokenizer
    if named == "tiny" or Path(named).expanduser().exists() or not (path / TOKENIZER).is_file():
        return run
    log.info("no tokenizer at %s: that of %s is taken", named, path)
    return replace(run, model=replace(run.model, tokenizer=str(path)))


def _without_weights(run: Run, components: Sequence[str]) -> Run:
    bare = {name: replace(getattr(run.model, name), weights=None) for name in components}
    return replace(run, model=replace(run.model, **bare))


def _build(run: Run) -> tuple[Engine, Encoder]:
    check_world(run, int(os.environ.get("WORLD_SIZE", "1")))
    tokenizer = load_tokenizer(run.model.tokenizer, run.data.template)
    # A checkpoint is the same whichever engine wrote it, and Megatron's needs no second package to read it.
    return build_engine(replace(run, engine=EngineSettings())), Encoder(run.model, run.data, tokenizer)
