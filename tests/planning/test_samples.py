"""Assumed samples against encoded ones: the same tokens, tiles and memory for the same picture and text."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from nvlm_train.config.compose import compose
from nvlm_train.config.request import Assume
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.geometry import geometry_of
from nvlm_train.planning import samples
from nvlm_train.planning.samples import assumed_samples, sample_of, sentences
from nvlm_train.training.metrics import sample_work

ARCHITECTURES = ("nvlm_d", "nvlm_x", "nvlm_h")


def tiny(architecture, *words, stage="sft"):
    return compose([f"recipe={architecture}_tiny", f"stage={stage}", *words])[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tiles", [0, 1, 3, 7])
def test_a_sample_is_what_encoding_makes_of_it(architecture, tiles, monkeypatch):
    """A picture before its text. All tokens are assumed to read it; in fact those before it (a role's name) do not."""
    run = tiny(architecture, "data.max_tokens=512", "data.pack_tokens=512", "data.system_prompt=null", "model.tags.global_name=tile_7")
    encoder = Encoder(run.model, run.data, load_tokenizer("tiny"))
    side = run.model.vision.tile_size
    sizes = {0: [], 1: [(side, side)], 3: [(2 * side, side)], 7: [(3 * side, 2 * side)]}[tiles]
    turns = (Turn("user", "<image>\n" * bool(tiles) + "what is it"), Turn("assistant", "noise " * 20))
    text = encoder.text_tokens(turns, len(sizes))
    sample = encoder.encode(Sample("a", "b", (), turns), encoder.plan(text, sizes), features=torch.empty(tiles, 1, 0))
    real = sample_work(pack_row([sample], sample.length, 0, side), geometry_of(run.model).tokens)[0]
    monkeypatch.setattr(samples, "TAG_TOKENS", len(encoder.tokenizer.encode("<tile_1>")))
    assumed = sample_of(run, tiles, text, real.supervised)
    assert assumed[:4] == real[:4]
    before = assumed.readers - real.readers
    assert 0 <= before < 10 and assumed.pairs - real.pairs == before * assumed.memory_tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_limits_are_kept(architecture, stage):
    run = compose([f"recipe={architecture}_72b", f"stage={stage}"])[0]
    for sample in assumed_samples(run, Assume(), 500):
        assert 0 < sample.tokens <= run.data.max_tokens and sample.tiles <= run.data.max_tiles + 1
        assert 0 < sample.supervised <= sample.tokens


def test_a_long_sample_gets_fewer_tiles_and_then_less_text():
    run = compose(["recipe=nvlm_d_72b", "stage=sft"])[0]
    assert sample_of(run, 7, 1373, 100) == (3200, 7, 100, 0, 0, 0, 0)
    assert sample_of(run, 7, 1374, 100).tiles == 5 and sample_of(run, 7, 1374, 100).tokens == 5 * 261 + 1374
    assert sample_of(run, 7, 9000, 100) == (3200, 1, 100, 0, 0, 0, 0)


def test_what_is_said_is_taken():
    run = compose(["recipe=nvlm_d_72b", "stage=sft"])[0]
    found = assumed_samples(run, Assume(text_share=0.0, tiles=3, text_tokens=200, learned=0.25), 20)
    assert {(sample.tokens, sample.tiles, sample.supervised) for sample in found} == {(3 * 261 + 200, 3, 50)}
    told = " ".join(sentences(run, Assume(text_share=0.0, tiles=3, text_tokens=200, learned=0.25)))
    assert "0%" in told and "200 tokens" in told and "25%" in told and "picture: 3" in told


def test_share_of_text_comes_from_the_blend():
    run = compose(["recipe=nvlm_d_72b", "stage=sft"])[0]
    without = np.mean([not sample.tiles for sample in assumed_samples(run, Assume(), 4000)])
    assert without == pytest.approx(0.2, abs=0.02)      # three deviations of the mean of 4,000 draws
    half = replace(run, data=replace(run.data, blend={
        name: replace(source, weight=1.0) for name, source in run.data.blend.items()}))
    assert "50%" in sentences(half, Assume())[0]
    assert "0%" in sentences(compose(["recipe=nvlm_d_72b", "stage=pretrain"])[0], Assume())[0]


def test_the_same_draw_every_time():
    run = tiny("nvlm_d")
    random.seed(5)
    first = assumed_samples(run, Assume(), 10)
    assert first == assumed_samples(run, Assume(), 10)
