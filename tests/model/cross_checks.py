"""Facts of gated cross-attention on one process, measured and written as JSON; `test_cross_attention` asserts them."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.model import attention, cross_attention
from nvlm_train.model.cross_attention import plan_reads, read_memory
from nvlm_train.model.nvlm import to_device
from nvlm_train.parallel.groups import clear
from nvlm_train.planning.live import Saved
from tests.model.rows import TOKENS_PER_TILE, T, make_row

CPU, EVERYWHERE = torch.device("cpu"), torch.arange(T)
FROZEN = "train.trainable=[connector,cross_attention]"
ARCHITECTURES = ("nvlm_d", "nvlm_x", "nvlm_h")


def engine_of(recipe: str, *overrides: str) -> MegatronEngine:
    clear()
    return MegatronEngine(compose([f"recipe={recipe}_tiny", "stage=sft", f"data.pack_tokens={T}", *overrides])[0])


def step(engine, *rows, lr=1e-3):
    return engine.train_step(StepBatch(0, rows, (), 0), lr)


def text_only() -> dict:
    """Text-only logits against those of the language model without cross-attention: gates closed, opened, and trained."""
    row = make_row("nvlm_d", 1, "text")
    plain = engine_of("nvlm_d").logits(row, EVERYWHERE)
    found = {}
    for name in ("nvlm_x", "nvlm_h", "flamingo"):
        found[name] = torch.equal(engine_of(name).logits(row, EVERYWHERE), plain)
    for name in ("nvlm_x", "nvlm_h"):
        engine = engine_of(name, "model.cross_attention.gate_init=0.3", FROZEN)
        step(engine, make_row(name, 2), make_row(name, 3))
        found[f"{name}, trained with a frozen language model"] = torch.equal(engine.logits(row, EVERYWHERE), plain)
    return found


def closed_gates_hide_the_memory() -> dict:
    """With gates at zero pixels change nothing in X; with gates open they do."""
    found = {}
    for gate in (0.0, 0.3):
        engine, row = engine_of("nvlm_x", f"model.cross_attention.gate_init={gate}"), make_row("nvlm_x", 4)
        black = replace(row, tiles_nCPP=torch.zeros_like(row.tiles_nCPP))
        found[str(gate)] = torch.equal(engine.logits(row, EVERYWHERE), engine.logits(black, EVERYWHERE))
    return found


def isolation() -> dict:
    """Change the first sample's pixels and text: the second's logits stay bit-equal, for all three, with gates open."""
    found = {}
    for name in ARCHITECTURES:
        gates = [] if name == "nvlm_d" else ["model.cross_attention.gate_init=0.3"]
        engine, row = engine_of(name, *gates), make_row(name, 5)
        before = engine.logits(row, EVERYWHERE)
        pixels, tokens = row.tiles_nCPP.clone(), row.tokens_T.clone()
        pixels[0], tokens[5] = 255 - pixels[0], 7
        after = engine.logits(replace(row, tiles_nCPP=pixels, tokens_T=tokens), EVERYWHERE)
        pixels = row.tiles_nCPP.clone()
        pixels[1] = 255 - pixels[1]
        other = engine.logits(replace(row, tiles_nCPP=pixels), EVERYWHERE)
        changed = (before != other).any(-1).nonzero()[:, 0]
        found[name] = {"neighbour_equal": torch.equal(before[150:], after[150:]),
                       "own_changed": not torch.equal(before[25:150], after[25:150]),
                       "tile_1_changes": [int(changed.min()), int(changed.max()) + 1]}
    return found


def tags_read_their_tile() -> dict:
    """X: the second tile's tag does not see the first tile directly; self-attention carries it on, so look below that: one layer."""
    engine = engine_of("nvlm_x", "model.language.layers=1", "model.cross_attention.layers=[0]", "model.cross_attention.gate_init=0.3")
    row = make_row("nvlm_x", 6)
    before = engine.logits(row, EVERYWHERE)
    found = {}
    for tile in (1, 2):
        pixels = row.tiles_nCPP.clone()
        pixels[tile] = 255 - pixels[tile]
        changed = (before != engine.logits(replace(row, tiles_nCPP=pixels), EVERYWHERE)).any(-1)
        found[str(tile)] = [bool(changed[a:b].any()) for a, b in ((0, 170), (170, 174), (174, 178), (178, 330), (330, T))]
    return found


def _keep(outputs: list, layer, arguments, output) -> None:
    outputs.append(output[0])


def gradients_in_stage_one() -> dict:
    """Which decoder layers hand on states with a gradient while the language model is frozen."""
    found = {}
    for name, trainable in (("nvlm_d", "train.trainable=[connector]"), ("nvlm_x", FROZEN), ("nvlm_h", FROZEN)):
        stage, outputs = engine_of(name, trainable).stages()[0], []
        for layer in stage.language.decoder.layers:
            layer.register_forward_hook(partial(_keep, outputs))
        stage(to_device(make_row(name, 7), CPU, TOKENS_PER_TILE))
        found[name] = {"first_cross": min(stage.cross_layers, default=None), "layers": [hidden.requires_grad for hidden in outputs]}
    return found


def recompute() -> dict:
    """Full recomputation changes neither loss nor gradient, in either stage; the gates' gradient comes from the recorded graph."""
    found = {}
    for trainable in (FROZEN, "train.trainable=[connector,language]"):
        for name in ("nvlm_x", "nvlm_h", "flamingo"):
            norms = [step(engine_of(name, trainable, "model.cross_attention.gate_init=0.3", f"model.recompute={how}"),
                          make_row("nvlm_h" if name == "nvlm_h" else "nvlm_x", 8), make_row("nvlm_x", 8, "text")).grad_norm
                     for how in ("none", "full")]
            found[f"{name} {trainable}"] = norms
    return found


def recomputed_parts() -> dict:
    """Loss and norm of a step, pictures and text, and bytes that a forward keeps, by what is computed again."""
    found, parts = {}, ["", "attention", "mlp", "connector", "vision", "cross_attention"]
    for part in (*parts, ",".join(parts[1:])):
        engine = engine_of("nvlm_x", "train.trainable=[vision,connector,language]", "model.cross_attention.gate_init=0.3",
                           f"model.recompute_parts=[{part}]")
        saved = Saved(ignore=engine.stages()[0].parameters())
        with saved():
            losses = engine.stages()[0](to_device(make_row("nvlm_x", 8), CPU, TOKENS_PER_TILE))
        report = step(engine, make_row("nvlm_x", 8), make_row("nvlm_x", 8, "text"))
        found[part] = {"saved": saved.bytes * losses.requires_grad, "step": [report.loss, report.grad_norm]}
    frozen = engine_of("nvlm_d", "train.trainable=[connector]", "model.recompute_parts=[connector]")
    found["frozen"] = {"with": step(frozen, make_row("nvlm_d", 8)).grad_norm,
                          "without": step(engine_of("nvlm_d", "train.trainable=[connector]"), make_row("nvlm_d", 8)).grad_norm}
    return found


def frozen_keeps_nothing() -> dict:
    """Bytes that a frozen encoder's forward keeps, and those that a layer of a frozen decoder keeps below and above what is trained."""
    stage = engine_of("nvlm_x", FROZEN).stages()[0]
    row, kept = to_device(make_row("nvlm_x", 8), CPU, TOKENS_PER_TILE), {}

    def counting(name, forward):
        def run(*args, **rest):
            saved = Saved(ignore=stage.parameters())
            with saved():
                out = forward(*args, **rest)
            kept[name] = saved.bytes
            return out
        return run

    stage.vision.forward = counting("vision", stage.vision.forward)
    for number, layer in enumerate(stage.language.decoder.layers):
        layer.forward = counting(f"layer {number}", layer.forward)
    stage(row)
    return kept | {"first_cross": min(stage.cross_layers)}


def dense_attention() -> dict:
    """Span by span, and in one variable-length call, against one softmax under an explicit mask; overlapping spans included."""
    random = torch.Generator().manual_seed(9)
    q, k, v = (torch.randn(n, heads, 16, generator=random) for n, heads in ((40, 4), (30, 2), (30, 2)))
    spans = [(3, 10, 0, 10), (10, 12, 10, 20), (12, 13, 0, 20), (30, 40, 20, 30)]
    mask = torch.zeros(40, 30, dtype=torch.bool)
    for start, stop, first, last in spans:
        mask[start:stop, first:last] = True
    wide_k, wide_v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, wide_k) / 4
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)
    expected = torch.einsum("hqk,khd->qhd", weights, wide_v)
    reads = plan_reads(spans, CPU)

    def varlen(q, k, v, cu_q, cu_k, longest_q, longest_k):
        """What torch's kernel does, by its definition."""
        assert longest_q == 10 and longest_k == 20
        parts = []
        for i in range(len(cu_q) - 1):
            a, b, c, d = (int(x) for x in (cu_q[i], cu_q[i + 1], cu_k[i], cu_k[i + 1]))
            q_, k_, v_ = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
            parts.append(F.scaled_dot_product_attention(q_, k_, v_).transpose(0, 1))
        return torch.cat(parts)

    attention.varlen_attn = varlen
    one_call = cross_attention._in_one_call(q, k, v, reads)
    by_span = read_memory(q, k, v, reads, "segments")
    nothing = by_span[~mask.any(1)]
    return {"by_span": float((by_span - expected).abs().max()), "one_call": float((one_call - expected).abs().max()),
            "nothing_is_zero": bool((nothing == 0).all()) and len(nothing) > 0}


def refused_spans() -> dict:
    found = {}
    for name, spans in {"overlap": [(0, 5, 0, 2), (4, 6, 0, 2)], "no_memory": [(0, 5, 2, 2)]}.items():
        try:
            plan_reads(spans, CPU)
            found[name] = ""
        except ValueError as error:
            found[name] = str(error)
    return found


CHECKS = (text_only, closed_gates_hide_the_memory, isolation, tags_read_their_tile, gradients_in_stage_one, recompute, recomputed_parts,
          frozen_keeps_nothing, dense_attention,
          refused_spans)

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({check.__name__: check() for check in CHECKS}))
