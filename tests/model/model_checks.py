"""Small facts of the model on one process, measured and written as JSON; `test_model` asserts them one by one.

A process of its own, since preparing Megatron for the CPU changes torch for the whole process.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.errors import ConfigError
from nvlm_train.model.nvlm import to_device
from nvlm_train.parallel.groups import clear
from tests.model.rows import EDGES, TOKENS_PER_TILE, T, make_row


def engine_of(*overrides: str) -> MegatronEngine:
    clear()
    return MegatronEngine(compose(["recipe=nvlm_d_tiny", "stage=sft", f"data.pack_tokens={T}", *overrides])[0])


def parameters(engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.stages()[0].named_parameters()}


def step(engine, *rows, lr=1e-3):
    return engine.train_step(StepBatch(0, rows, (), 0), lr)


def image_tokens() -> dict:
    """Changing one tile changes nothing before its place."""
    engine = engine_of()
    row = make_row("nvlm_d", 1)
    before = engine.logits(row, torch.arange(T))
    pixels = row.tiles_nCPP.clone()
    pixels[2] = 0
    after = engine.logits(replace(row, tiles_nCPP=pixels), torch.arange(T))
    first = int((before != after).any(-1).nonzero()[0])
    return {"first_changed": first}


def loss_by_hand() -> dict:
    engine = engine_of()
    row = make_row("nvlm_d", 2)
    logits = engine.logits(row, torch.arange(T))
    losses = F.cross_entropy(logits.double(), row.labels_T, reduction="none")
    expected = float((losses * row.loss_weights_T).sum() / row.loss_weights_T.sum())
    report = step(engine, row, make_row("nvlm_d", 2))
    return {"expected": expected, "trained": report.loss, "weight": report.weight, "own_weight": float(row.loss_weights_T.sum())}


def attention_by_hand() -> dict:
    """The whole decoder under one explicit block-diagonal mask, in float64-free plain torch, against the packed one."""
    from nvlm_train.model.attention import _by_mask, _by_segment

    random = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(T, heads, 32, generator=random) for heads in (4, 2, 2))
    return {"difference": float((_by_segment(q, k, v, EDGES, None) - _by_mask(q, k, v, torch.tensor(EDGES, dtype=torch.int32), None)).abs().max())}


def frozen_and_textual() -> dict:
    """Stage 1 on a row without tiles: the connector still gets a gradient, a zero one; nothing else gets any."""
    engine = engine_of("train.trainable=[connector]", "train.weight_decay=0")
    before = parameters(engine)
    report = step(engine, make_row("nvlm_d", 4, "text"))
    after = parameters(engine)
    image = step(engine, make_row("nvlm_d", 4))
    changed = sorted({n.split(".")[0] for n, p in parameters(engine).items() if not torch.equal(p, before[n])})
    return {"text_norm": report.grad_norm, "text_skipped": report.skipped, "text_loss": report.loss,
            "text_moved": any(not torch.equal(after[n], before[n]) for n in before), "image_norm": image.grad_norm, "changed": changed}


def not_a_number() -> dict:
    engine = engine_of()
    before = parameters(engine)
    broken = make_row("nvlm_d", 5)
    broken.loss_weights_T[120] = float("nan")
    report = step(engine, broken)
    same = all(torch.equal(p, before[n]) for n, p in parameters(engine).items())
    good = step(engine, make_row("nvlm_d", 5))
    fresh = engine_of()
    reference = step(fresh, make_row("nvlm_d", 5))
    return {"skipped": report.skipped, "weights_same": same, "good_skipped": good.skipped, "good_loss": good.loss,
            "reference_loss": reference.loss,
            "as_if_never": all(torch.equal(p, parameters(fresh)[n]) for n, p in parameters(engine).items())}


def rates() -> dict:
    """A factor of 0 on a component keeps it still, weight decay included."""
    engine = engine_of("+train.lr_multipliers={connector:0.0}")
    before = parameters(engine)
    step(engine, make_row("nvlm_d", 6))
    moved = {n.split(".")[0] for n, p in parameters(engine).items() if not torch.equal(p, before[n])}
    return {"moved": sorted(moved)}


def refused() -> dict:
    found = {}
    for key in ("trainable=[connector,language.*.nrom.*]", "lr_multipliers={language.*.nrom.*:0.1}"):
        try:
            engine_of(f"train.{key}")
            found[key.split("=")[0]] = ""
        except ConfigError as error:
            found[key.split("=")[0]] = str(error)
    return found


def validation() -> dict:
    engine = engine_of()
    row = make_row("nvlm_d", 7)
    scores = engine.evaluate([row])
    report = step(engine, row)
    total, weight = scores["tiny"]
    return {"evaluated": total / weight, "trained": report.loss, "source": report.source_losses["tiny"][0] / report.weight}


def empty_rows() -> dict:
    """Rows of padding only change nothing in loss and gradients."""
    padding = make_row("nvlm_d", 0, "empty")
    alone, padded = step(engine_of(), make_row("nvlm_d", 8)), step(engine_of(), make_row("nvlm_d", 8), padding)
    nothing = step(engine_of(), padding)
    return {"alone": [alone.loss, alone.grad_norm], "padded": [padded.loss, padded.grad_norm], "nothing_skipped": nothing.skipped}


def normalisation() -> dict:
    engine = engine_of()
    row, seen = make_row("nvlm_d", 9), []
    hook = engine.stages()[0].vision.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    engine.logits(row, torch.tensor([0]))
    hook.remove()
    vision = engine.stages()[0].vision
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    pixels = (row.tiles_nCPP.float() / 255 - mean) / std
    patch = pixels[1][:, 4:8, 8:12]    # second row of patches, third column: patch 8 + 2
    expected = torch.einsum("chw,ochw->o", patch, vision.patch_weight) + vision.patch_bias + vision.position[0, 1 + 10]
    device_row = to_device(row, torch.device("cpu"), TOKENS_PER_TILE)
    return {"difference": float((seen[0][1, 1 + 10] - expected).abs().max()), "tokens": list(engine.stages()[0].see(device_row).shape)}


def cached_features() -> dict:
    """What the encoder was seen to make of the tiles stands in for them; what it makes of other tiles does not."""
    engine = engine_of()
    row = make_row("nvlm_d", 10)
    features = engine.see(row)
    cached = replace(row, tiles_nCPP=row.tiles_nCPP[:0], features_nLC=features)
    expected, found, other = (engine.logits(batch, torch.arange(T)) for batch in (
        row, cached, replace(cached, features_nLC=features.flip(0))))
    seen = []
    hook = engine.stages()[0].vision.register_forward_hook(lambda *args: seen.append(1))
    step(engine, cached)
    hook.remove()
    return {"shape": list(features.shape), "equal": torch.equal(expected, found), "other_equal": torch.equal(expected, other),
            "encoder_runs": len(seen)}


CHECKS = (image_tokens, loss_by_hand, attention_by_hand, frozen_and_textual, not_a_number, rates, refused, validation,
          empty_rows, normalisation, cached_features)

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({check.__name__: check() for check in CHECKS}))
