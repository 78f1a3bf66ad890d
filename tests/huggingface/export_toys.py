"""Tiny models as checkpoints, and the same models as exported folders."""

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts
from nvlm_train.engine.manifest import fingerprint
from nvlm_train.training.stages import build_engine

LOUD = ("model.init_std=0.2", "model.cross_attention.gate_init=0.5")     # so that every part shows in the logits
CLIP = ("model.vision.family=clip", "model.vision.layer_scale=false", "model.vision.first_norm=true",
        "model.vision.patch_bias=false", "model.vision.activation=quick_gelu", "model.vision.mean=[0.4,0.5,0.6]",
        "model.vision.norm_eps=1e-5")
SIGLIP = ("model.vision.family=siglip", "model.vision.layer_scale=false", "model.vision.final_norm=true",
          "model.vision.class_token=false", "model.vision.activation=gelu_tanh")
QWEN = ("model.language.family=qwen2", "model.language.qkv_bias=true")


def tiny_run(recipe: str, *words: str) -> Run:
    [run] = compose([f"recipe={recipe}", "stage=sft", "run.device=cpu", *LOUD, *words])
    return run


class WeightsOnly:
    """An engine that was never trained has no optimizer state to save."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def sharded_state(self, loading: bool) -> dict:
        return self._engine.sharded_state(loading, optimizer=False)


def save(run: Run, engine, run_dir: Path, step: int = 7) -> Path:
    """A checkpoint of an engine in a run directory. Returns the step folder."""
    facts = SaveFacts(run.stage, asdict(run), fingerprint(run, load_tokenizer(run.model.tokenizer).fingerprint), cursor=0)
    store = CheckpointStore(run_dir / "checkpoints" / run.stage, keep_last=1)
    store.save(engine, facts, step)
    return store.latest()


def saved(run: Run, run_dir: Path) -> Path:
    """A checkpoint of a model with its initial weights."""
    engine = build_engine(run)
    path = save(run, WeightsOnly(engine), run_dir)
    engine.close()
    return path


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A picture of random colours."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def opened(pictures) -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)) for data in pictures]
