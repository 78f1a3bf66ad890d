"""Weights from elsewhere into a model that has just been built: checkpoints of ours, and folders that `nvlm import` made.

Single files of safetensors the engine reads itself. Everything here is a collective: what does not fit is refused on every rank,
and files are hashed once, shared out over the ranks.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvlm_train.config.schema import Run
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.engine.agree import on_every_rank, on_main
from nvlm_train.engine.checkpoint import load, load_backbones, resolve, verify_files
from nvlm_train.engine.folders import is_checkpoint
from nvlm_train.engine.interface import Engine
from nvlm_train.engine.manifest import fingerprint
from nvlm_train.engine.weights_folder import TOKENIZER, WeightsFolder, differences, is_weights_folder
from nvlm_train.errors import CheckpointError
from nvlm_train.training.start import Start

COMPONENTS = ("vision", "connector", "language")

log = logging.getLogger(__name__)


def load_start(run: Run, start: Start, engine: Engine, tokenizer: Tokenizer) -> None:
    """Everything that a stage begins with. Raises CheckpointError on every rank."""
    if start.checkpoint is None:
        load_backbones_of(run, engine, tokenizer)
    elif is_weights_folder(start.checkpoint):
        load_folder(start.checkpoint, engine, whole_model(run), run, tokenizer)
    else:
        load(start.checkpoint, engine, fingerprint(run, tokenizer.fingerprint), model_only=not start.resumed)


def load_backbones_of(run: Run, engine: Engine, tokenizer: Tokenizer) -> None:
    """Components out of what `model.….weights` names: checkpoints of whatever architecture, and folders of weights."""
    wanted: dict[Path, list[str]] = {}
    for component in COMPONENTS:
        weights = getattr(run.model, component).weights
        if weights is not None and is_weights_folder(weights):
            wanted.setdefault(Path(weights).expanduser(), []).append(component)
        elif weights is not None and is_checkpoint(weights):
            wanted.setdefault(resolve(weights), []).append(component)
    for path, components in wanted.items():     # each is verified and read once, whatever is taken of it
        load_components(path, engine, components, run, tokenizer)


def load_components(path: Path, engine: Engine, components: Sequence[str], run: Run, tokenizer: Tokenizer) -> None:
    """Components out of one checkpoint or folder of weights."""
    if is_weights_folder(path):
        load_folder(path, engine, components, run, tokenizer)
    else:
        load_backbones(path, engine, components, fingerprint(run, tokenizer.fingerprint))


def whole_model(run: Run) -> list[str]:
    """Every component of a run's model."""
    return [*COMPONENTS, *(["cross_attention"] if run.model.architecture != "nvlm_d" else [])]


def load_folder(path: Path, engine: Engine, components: Sequence[str], run: Run, tokenizer: Tokenizer) -> None:
    """Components out of a folder of weights. A collective.

    A language model brings its gated cross-attention along where it has one of the same sizes; asked for by name, it must. Raises
    CheckpointError on every rank: a component is not there or of other sizes, another vocabulary, a file is damaged or gone.
    """
    def open_it() -> WeightsFolder:
        weights = WeightsFolder.read(path)
        if problems := misfits(weights, run, components):
            raise CheckpointError("\n  ".join([f"{path} does not fit this model:", *problems]))
        if problem := weights.problem_with_files():
            raise CheckpointError(problem)
        return weights

    weights = on_every_rank(engine, f"reading {path}", open_it, CheckpointError)[0]
    if "language" in components:
        on_main(engine, f"comparing the vocabulary of {path}", lambda: _same_vocabulary(weights, tokenizer), CheckpointError)
    verify_files(engine, path, weights.files)
    with_cross = "language" in components and fits_cross_attention(weights, run)
    taken = [*components, "cross_attention"] if with_cross and "cross_attention" not in components else components
    on_every_rank(engine, f"reading {path}", lambda: engine.load_weights(weights, taken), CheckpointError)
    log.info("%s from %s%s", " and ".join(taken).replace("_", "-"), path, _licence(weights))


def misfits(weights: WeightsFolder, run: Run, components: Sequence[str]) -> list[str]:
    """Why components of a folder cannot be taken into a run's model; both values where two settings differ."""
    held = weights.sizes.components
    lacking = [f"it holds no {name.replace('_', '-')}, only {' and '.join(held)}" for name in components if name not in held]
    return lacking + differences(weights.sizes, run.model, [name for name in components if name in held])


def fits_cross_attention(weights: WeightsFolder, run: Run) -> bool:
    """Whether the folder's gated cross-attention is that of the run's model. Says so where it has one and it is not."""
    if run.model.architecture == "nvlm_d" or weights.sizes.cross_attention is None:
        return False
    if problems := differences(weights.sizes, run.model, ["cross_attention"]):
        log.warning("%s: its gated cross-attention is left out, for it is another one (%s)", weights.path, problems[0])
    return not problems


def _same_vocabulary(weights: WeightsFolder, tokenizer: Tokenizer) -> None:
    """Refuse rows of an embedding that would stand for other pieces of text. Special tokens may differ: some may be new."""
    if weights.tokenizer in (None, tokenizer.fingerprint):
        return
    theirs = _pieces(json.loads((weights.path / TOKENIZER).read_bytes()))
    moved = [piece for piece, number in theirs.items() if tokenizer.id_of(piece) != number]
    if moved:
        here, there = tokenizer.id_of(moved[0]), theirs[moved[0]]
        raise CheckpointError(
            f"tokenizer {tokenizer.name} (model.tokenizer) is not that of {weights.path}: {len(moved):,} of {len(theirs):,} "
            f"pieces of text have another id or none, such as {moved[0]!r}: {there} in the weights, {here} here. "
            f"Set model.tokenizer={weights.path / TOKENIZER}")


def _pieces(description: Mapping[str, Any]) -> dict[str, int]:
    """The pieces of text of a tokenizer.json and their ids, special tokens not among them."""
    vocabulary = description["model"]["vocab"]
    pieces = vocabulary if isinstance(vocabulary, dict) else {piece: number for number, (piece, _) in enumerate(vocabulary)}
    special = {token["content"] for token in description.get("added_tokens", ())}
    return {piece: number for piece, number in pieces.items() if piece not in special}


def _licence(weights: WeightsFolder) -> str:
    licence, repository = weights.source.get("licence"), weights.source.get("repository")
    return f" ({repository or 'unnamed'}, licence {licence or 'unknown'})"
