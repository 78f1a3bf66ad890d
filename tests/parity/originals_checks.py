"""Our models beside the originals with the same random weights, measured and written as JSON; `test_originals` asserts.

An error is the distance to the original in float64, relative: |x - exact| / |exact| over all elements. Both implementations have
one, layer by layer.
"""

import itertools
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Data, Language, Run, Vision
from nvlm_train.contracts import EncodedSample, PackedBatch, StepBatch
from nvlm_train.data.packing import pack_row
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.evaluation.generate import generate
from nvlm_train.huggingface.names import language_entries, vision_entries
from nvlm_train.model.accounting import parameters
from tests.parity.originals import Original, as_published, encoder, language_model, take_over

LENGTHS, T, TILE, NEW = (61, 48), 128, 32, 20       # two samples in a row of T tokens

QWEN2 = Language(family="qwen2", layers=4, hidden=192, heads=6, kv_heads=2, head_dim=32, ffn=512, vocab=515, rope_base=1e6)
LLAMA = Language(family="llama", layers=4, hidden=144, heads=9, kv_heads=3, head_dim=16, ffn=384, vocab=515, rope_base=1e5,
                 norm_eps=1e-5, qkv_bias=False, tie_embeddings=True)
LANGUAGES = {"Qwen2": QWEN2, "Qwen2, tied": replace(QWEN2, tie_embeddings=True), "SmolLM2": LLAMA,
             "Llama": replace(LLAMA, tie_embeddings=False, heads=8, kv_heads=8, head_dim=24)}
INTERN = Vision(layers=4, hidden=160, heads=5, ffn=640, tile_size=TILE, patch=4)
CLIP = Vision(family="clip", layers=3, hidden=128, heads=4, ffn=512, tile_size=TILE, patch=4, norm="layer", norm_eps=1e-5, qkv_bias=True,
              qk_norm=False, layer_scale=False, first_norm=True, patch_bias=False, activation="quick_gelu",
              mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
VISIONS = {     # and how many layers the original has: CLIP's last one is not taken (LLaVA)
    "InternViT-6B": (INTERN, 4),
    "InternViT-300M": (replace(INTERN, norm="layer", qkv_bias=True, qk_norm=False), 4),
    "CLIP": (CLIP, 4),
    "SigLIP": (replace(CLIP, family="siglip", layers=4, norm_eps=1e-6, first_norm=False, final_norm=True, class_token=False,
                       patch_bias=True, activation="gelu_tanh", mean=(0.5,) * 3, std=(0.5,) * 3), 4),
}
SLIPS = {       # settings that are almost right: the comparison has to see each
    "epsilon": ("Qwen2", {"norm_eps": 1e-5}), "rotary base": ("Qwen2", {"rope_base": 1.001e6}),
    "GELU's form": ("InternViT-300M", {"activation": "gelu_tanh"}), "CLIP's GELU": ("CLIP", {"activation": "gelu"}),
    "SigLIP's GELU": ("SigLIP", {"activation": "gelu"}), "CLIP's epsilon": ("CLIP", {"norm_eps": 1e-6}),
    "colours": ("CLIP", {"mean": (0.485, 0.456, 0.406)}),
}


def run_of(component: str, settings: Language | Vision) -> Run:
    words = ["recipe=nvlm_d_tiny", "stage=sft", f"data.pack_tokens={T}", "data.max_tokens=128", "model.dtype=fp32", "run.device=cpu",
             "train.trainable=[language]", "model.vision.layers=1", "model.language.layers=1"]
    [run] = compose(words)
    return replace(run, model=replace(run.model, **{component: settings}))


def samples(vocab: int) -> list[EncodedSample]:
    """Two texts, their later parts supervised with different weights."""
    random = np.random.default_rng(7)
    made = []
    for name, length in zip("ab", LENGTHS, strict=True):
        weights = np.zeros(length, dtype=np.float32)
        weights[length // 3:] = random.uniform(0.2, 1.0, length - length // 3)
        made.append(EncodedSample(name, "tiny", random.integers(0, vocab, length), weights,
                                  np.empty((0, 3, TILE, TILE), dtype=np.uint8), np.empty(0, dtype=np.int64)))
    return made


def watch(modules: dict[str, nn.Module], act) -> dict[str, Tensor]:
    """What each module gives out while `act` runs."""
    seen: dict[str, list] = {name: [] for name in modules}
    hooks = [module.register_forward_hook(lambda _, args, out, name=name: seen[name].append(out[0] if isinstance(out, tuple) else out))
             for name, module in modules.items()]
    act()
    for hook in hooks:
        hook.remove()
    return {name: outs[0] if len(outs) == 1 else torch.cat(outs, 1) for name, outs in seen.items()}


def errors(exact: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    assert list(exact) == list(found)
    return {name: float((found[name].double() - exact[name]).norm() / exact[name].norm()) for name in exact}


# ------------------------------------------------------------------------------------------------------------ language


def their_layers(model: nn.Module, texts: list[EncodedSample]) -> dict[str, Tensor]:
    """Every text by itself, [tokens of both, width] at each place."""
    modules = {f"layer {number}": layer for number, layer in enumerate(model.model.layers)}
    modules |= {"final norm": model.model.norm, "logits": model.lm_head}

    @torch.no_grad()
    def act():
        for text in texts:
            model(torch.from_numpy(text.tokens)[None])

    return {name: out[0] for name, out in watch(modules, act).items()}


def our_layers(engine: MegatronEngine, row: PackedBatch) -> dict[str, Tensor]:
    """The same out of one packed row."""
    decoder, real = engine.stages()[0].language.decoder, sum(LENGTHS)
    modules = {f"layer {number}": layer for number, layer in enumerate(decoder.layers)} | {"final norm": decoder.final_layernorm}
    logits = []
    seen = watch(modules, lambda: logits.append(engine.logits(row, torch.arange(real))))
    return {name: out[:real, 0] for name, out in seen.items()} | {"logits": logits[0]}


def their_loss(model: nn.Module, texts: list[EncodedSample]) -> tuple[float, float]:
    """(weighted cross-entropy over both texts, norm of its gradient), unpacked."""
    model.zero_grad()
    losses, weights = [], []
    for text in texts:
        logits = model(torch.from_numpy(text.tokens)[None]).logits[0, :-1]
        losses.append(F.cross_entropy(logits, torch.from_numpy(text.tokens)[1:], reduction="none"))
        weights.append(torch.from_numpy(text.loss_weights)[1:].to(logits.dtype))
    loss = (torch.cat(losses) * torch.cat(weights)).sum() / torch.cat(weights).sum()
    loss.backward()
    squares = sum(float(param.grad.double().square().sum()) for param in model.parameters())
    return float(loss.detach()), squares**0.5


def greedy(engine: MegatronEngine, original: Original, texts: list[EncodedSample], m: Language) -> dict:
    """NEW tokens of both, and how far the likeliest token led at the least."""
    encoder = SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=m.vocab, pad_id=0, eos_id=-1),
                              data=Data(pack_tokens=T, pack_tiles=4), geometry=SimpleNamespace(tile_size=TILE))
    prompts = [replace(text, tokens=text.tokens[:12], loss_weights=text.loss_weights[:12]) for text in texts]
    ours = generate(engine, encoder, prompts, NEW)
    theirs, leads = [], []
    for prompt in prompts:
        tokens = torch.from_numpy(prompt.tokens)[None]
        whole = original.single.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, do_sample=False,
                                         eos_token_id=None, pad_token_id=0)
        theirs.append(whole[0, 12:].tolist())
        with torch.no_grad():
            first, second = original.exact(whole).logits[0, 11:-1].topk(2).values.unbind(-1)
        leads.append(float((first - second).min()))
    return {"ours": ours, "theirs": theirs, "lead": min(leads)}


def of_language(m: Language, original: Original, fully: bool) -> dict:
    texts = samples(m.vocab)
    row = pack_row(texts, T, 0, TILE)
    with closing(MegatronEngine(run_of("language", m))) as engine:
        left = take_over(engine.stages()[0], "language", language_entries(m), as_published(original.single))
        exact, single = their_layers(original.exact, texts), their_layers(original.single, texts)
        ours = our_layers(engine, row)
        found = {"theirs": errors(exact, single), "ours": errors(exact, ours), "unused": sorted(left)}
        if fully:
            found["logits off"] = float((ours["logits"].double() - exact["logits"]).abs().max())
            found["greedy"] = greedy(engine, original, texts, m)
            found["exact loss"], found["exact norm"] = their_loss(original.exact, texts)
            report = engine.train_step(StepBatch(0, (row,), (), 0), 1e-4)
            found["loss"], found["norm"] = report.loss, report.grad_norm
    return found


# -------------------------------------------------------------------------------------------------------------- vision


def their_patches(model: nn.Module, v: Vision, pixels: Tensor) -> dict[str, Tensor]:
    """[n, tokens, width] behind each layer that ours has, and the feature."""
    layers = model.encoder.layer if v.family == "internvit" else model.encoder.layers
    modules = {f"layer {number}": layer for number, layer in enumerate(itertools.islice(layers, v.layers))}
    if v.final_norm:
        modules["feature"] = model.post_layernorm
    with torch.no_grad():
        seen = watch(modules, lambda: model(pixels))
    feature = seen.get("feature", seen[f"layer {v.layers - 1}"])
    return seen | {"feature": feature[:, int(v.class_token):]}


def of_vision(v: Vision, original: Original, normal: Vision) -> dict:
    """normal: whose colours the original's pixels are normalised with."""
    tiles = torch.randint(0, 256, (3, 3, TILE, TILE), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    mean, std = (torch.tensor(getattr(normal, name), dtype=torch.float64).view(3, 1, 1) for name in ("mean", "std"))
    pixels = (tiles.double() / 255 - mean) / std
    exact, single = their_patches(original.exact, v, pixels), their_patches(original.single, v, pixels.float())
    row = pack_row([EncodedSample("a", "tiny", np.zeros(60, dtype=np.int64), np.zeros(60, dtype=np.float32), tiles.numpy(),
                                  np.array([0, 16, 32]))], T, 0, TILE)
    run = run_of("vision", v)
    with closing(MegatronEngine(run)) as engine:
        vision = engine.stages()[0].vision
        left = take_over(engine.stages()[0], "vision", vision_entries(v), as_published(original.single))
        features = []
        ours = watch({f"layer {number}": layer for number, layer in enumerate(vision.layers)},
                     lambda: features.append(engine.see(row)))
        ours["feature"] = features[0]
    return {"theirs": errors(exact, single), "ours": errors(exact, ours), "unused": sorted(left),
            "parameters": [sum(param.numel() for param in vision.parameters()), parameters(run.model).vision]}


def main() -> None:
    out = Path(sys.argv[1])
    models = {name: language_model(m, seed) for seed, (name, m) in enumerate(LANGUAGES.items())}
    encoders = {name: encoder(v, layers, seed) for seed, (name, (v, layers)) in enumerate(VISIONS.items())}
    found = {"language": {name: of_language(m, models[name], fully=True) for name, m in LANGUAGES.items()},
             "vision": {name: of_vision(v, encoders[name], v) for name, (v, _) in VISIONS.items()}, "slips": {}}
    for slip, (name, changed) in SLIPS.items():
        if name in LANGUAGES:
            found["slips"][slip] = of_language(replace(LANGUAGES[name], **changed), models[name], fully=False)
        else:
            normal = VISIONS[name][0]
            found["slips"][slip] = of_vision(replace(normal, **changed), encoders[name], normal)
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
