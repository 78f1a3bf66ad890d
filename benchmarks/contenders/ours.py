"""nvlm_train itself: the real engine and its real training step on rows that its own packing made."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.contenders.result import facts
from benchmarks.contenders.workloads import STAGES, Piece, Shapes
from benchmarks.timing import name_of, timed
from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.contracts import EncodedSample, PackedBatch, StepBatch, TileMemory
from nvlm_train.data.packing import Cost, assign, pack_row
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import peak_flops, trained_components, useful_flops
from nvlm_train.training.metrics import sample_work
from nvlm_train.training.profile.hook import useful_of, write_profile
from nvlm_train.training.profile.session import Session
from nvlm_train.training.profile.summary import Share, summary

SOURCE = "work"
# Tiles of a row, for tokens to be what fills it: D's tiles are tokens themselves, and X's take none.
TILES = {"d": 64, "x": 160, "h": 64}


def run_of(workload: str, architecture: str, shapes: Shapes, overrides: Sequence[str]) -> Run:
    """The smallest real recipe, or the tiny one, at exactly these shapes."""
    recipe = "2b" if shapes.tile == 448 else "tiny"
    sizes = {
        "vision.layers": shapes.vit_layers, "vision.hidden": shapes.vit_width, "vision.heads": shapes.vit_heads,
        "vision.ffn": shapes.vit_ffn, "vision.tile_size": shapes.tile, "vision.patch": shapes.patch, "vision.weights": "null",
        "language.layers": shapes.layers, "language.hidden": shapes.width, "language.heads": shapes.heads,
        "language.kv_heads": shapes.kv_heads, "language.head_dim": shapes.head_dim, "language.ffn": shapes.ffn,
        "language.vocab": shapes.vocab, "language.tie_embeddings": "false", "language.weights": "null",
        "connector.hidden": shapes.width, "tokenizer": "tiny"}
    words = [f"recipe=nvlm_{architecture}_{recipe}", f"stage={STAGES[workload]}", *(f"model.{key}={value}" for key, value in sizes.items()),
             f"data.pack_tokens={shapes.row}", f"data.max_tokens={shapes.row}", f"data.pack_tiles={TILES[architecture]}", "run.dir=unused",
             f"data.blend.{SOURCE}.path=unused", *overrides]
    return compose(words)[0]


def encoded(number: int, piece: Piece, architecture: str, shapes: Shapes, vocab: int) -> EncodedSample:
    """Tiles first, then text. D has all tiles in the sequence, X all in the memory, H its thumbnail, the last, in the sequence."""
    random = np.random.default_rng(number)
    shown = {"d": piece.tiles, "x": 0, "h": min(1, piece.tiles)}[architecture]
    kept = piece.tiles - shown
    tokens = random.integers(1, vocab - 1, shown * shapes.tile_tokens + piece.text)
    weights = np.zeros(len(tokens), dtype=np.float32)
    weights[len(tokens) - piece.supervised:] = 1.0
    starts = np.concatenate([np.full(kept, -1), np.arange(shown) * shapes.tile_tokens]).astype(np.int64)
    memory = TileMemory(np.zeros(kept, np.int64), np.zeros((kept, 2), np.int64), np.full((kept, 0), -1, np.int64)) if kept else None
    tiles = random.integers(0, 256, (piece.tiles, 3, shapes.tile, shapes.tile), dtype=np.uint8)
    return EncodedSample(str(number), SOURCE, tokens, weights, tiles, starts, memory)


def rows_of(run: Run, work: Sequence[Piece], architecture: str, shapes: Shapes, cached: bool, dtype: torch.dtype) -> list[PackedBatch]:
    """cached: features of the encoder in place of pixels, as `nvlm data cache-features` leaves them."""
    samples = [encoded(number, piece, architecture, shapes, shapes.vocab) for number, piece in enumerate(work)]
    costs = [Cost(sample.length, len(sample.tiles)) for sample in samples]
    rows = []
    for row in assign(costs, run.data.pack_tokens, run.data.pack_tiles, 1)[0]:
        batch = pack_row([samples[i] for i in row], run.data.pack_tokens, 0, shapes.tile)
        if cached:
            features = torch.randn(len(batch.tiles_nCPP), geometry_of(run.model).patches, shapes.vit_width).to(dtype)
            batch = replace(batch, features_nLC=features, tiles_nCPP=batch.tiles_nCPP[:0].clone())
        rows.append(batch)
    return rows


def measure(workload: str, work: list[Piece], shapes: Shapes, rounds: int, architecture: str, cached: bool = False,
            profile: str | None = None, overrides: Sequence[str] = ()) -> dict:
    run = run_of(workload, architecture, shapes, overrides)
    engine = MegatronEngine(run)
    rows = rows_of(run, work, architecture, shapes, cached, engine.dtype)
    if torch.cuda.is_available():       # as the loader hands them over
        rows = [replace(row, tiles_nCPP=row.tiles_nCPP.pin_memory()) for row in rows]
    batch = StepBatch(0, rows, (), 0)
    losses: list[float] = []
    took = timed(lambda: losses.append(engine.train_step(batch, run.train.lr).loss), rounds)
    works = [sample for row in rows for sample in sample_work(row, geometry_of(run.model).tokens)]
    flops = useful_flops(run.model, trained_components(run.model, run.train), works).total
    if profile:
        take_apart(engine, run, batch, Path(profile))
    trained = sum(parameter.numel() for stage in engine.stages() for parameter in stage.parameters() if parameter.requires_grad)
    fill = sum(row.real_tokens for row in rows) / sum(len(row.tokens_T) for row in rows)
    found = facts(took, work, shapes, workload, flops, rows=len(rows), fill=fill, kernels=engine.kernels.line(), first_loss=losses[0],
                  last_loss=losses[-1], trained=trained)
    engine.close()
    return found


def take_apart(engine: MegatronEngine, run: Run, batch: StepBatch, folder: Path) -> None:
    """One more step, its time by component: the trace, summary and page that `run.profile` makes of a run's steps."""
    session = Session(engine.stages(), engine.device)
    began = time.perf_counter()
    engine.train_step(batch, run.train.lr)
    session.step_done(0.0, time.perf_counter() - began)
    session.stop()
    device = name_of(engine.device) if engine.device.type == "cuda" else None
    work = useful_of(run, trained_components(run.model, run.train), batch.rows)
    share = Share(session.measured(folder / "trace-rank0.json.gz"), work)
    write_profile(folder, summary(run.stage, [1], [share], device, peak_flops(device), []))
