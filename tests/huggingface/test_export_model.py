"""The exported model on transformers is the trained one: the same prompts, logits and answers, by its own Python files alone."""

import copy
import sys

import numpy as np
import pytest
import torch
from export_toys import CLIP, QWEN, SIGLIP, WeightsOnly, opened, png, save, tiny_run

from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.data.layout import reads
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.evaluation.tasks import ask
from nvlm_train.huggingface.export import Export, export
from nvlm_train.training.stages import build_engine

transformers = pytest.importorskip("transformers")

MODELS = {
    "D, 6B style with dummy heads": ("nvlm_d_tiny_6b",),
    "D, CLIP, Qwen2 tied, 2-D tags": ("nvlm_d_tiny", *CLIP, *QWEN, "model.language.tie_embeddings=true",
                                      "model.tags.kind=2d_grid"),
    "D, SigLIP, boxes, pretraining's prompts": ("nvlm_d_tiny", *SIGLIP, "model.tags.kind=2d_bbox", "data.format=pretrain",
                                                "data.thumbnail=false"),
    "X": ("nvlm_x_tiny",),
    "X, Qwen2, all parts": ("nvlm_x_tiny", *QWEN, "model.cross_attention.qk_norm=true", "model.cross_attention.ffn=64",
                            "model.cross_attention.kv_heads=4", "model.cross_attention.tag_mask=false",
                            "data.system_prompt=null"),
    "H": ("nvlm_h_tiny",),
}
QUESTIONS = {
    "one tile": ((png(30, 30),), "What is <|im_end|> it?"),
    "several tiles": ((png(96, 64),), "Which one?"),
    "two pictures": ((png(96, 32), png(33, 64, seed=1)), "First <image> and then <image>\nWhat differs?"),
    "text alone": ((), "Say something."),
}
NEW = 5


class Pair:
    """A model on the engine and its export."""

    def __init__(self, words, folder):
        self.run = tiny_run(*words)
        self.engine, self.tokenizer = build_engine(self.run), load_tokenizer("tiny")
        self.encoder = Encoder(self.run.model, self.run.data, self.tokenizer)
        save(self.run, WeightsOnly(self.engine), folder / "run")
        self.path = export(Export(str(folder / "run"), str(folder / "exported")))
        self.model, self.loading = transformers.AutoModelForCausalLM.from_pretrained(
            self.path, trust_remote_code=True, output_loading_info=True)
        self.model.eval()
        self.exact = copy.deepcopy(self.model).double()
        self.words = transformers.AutoTokenizer.from_pretrained(self.path, trust_remote_code=True)
        self.processor = sys.modules[type(self.model).__module__].NvlmProcessor(self.model.config, self.words)

    def prompt(self, question):
        pictures, text = question
        sample = Sample("question", "toys", pictures, (Turn("user", text), Turn("assistant", "")))
        return sample, self.encoder.encode_prompt(sample, reserve=NEW)

    def prepared(self, question):
        return self.processor.prepare(question[1], opened(question[0]))


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def pair(request, tmp_path_factory):
    made = Pair(request.param, tmp_path_factory.mktemp("pair"))
    yield made
    made.engine.close()


def test_every_tensor_has_its_place(pair):
    assert not any(pair.loading.values())


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_prompts_and_tiles_are_those_of_training(pair, question):
    _, sample = pair.prompt(question)
    ready = pair.prepared(question)
    assert ready["input_ids"][0].tolist() == sample.tokens.tolist()
    if len(sample.tiles):
        vision = pair.run.model.vision
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (vision.mean, vision.std))
        assert torch.equal(ready["pixel_values"], (torch.tensor(np.ascontiguousarray(sample.tiles)).float() - mean) / std)
    assert ("reads" in ready) == (sample.memory is not None)
    if sample.memory is not None:
        table = torch.zeros(sample.length, len(sample.memory.seen_from_m), dtype=torch.bool)
        for start, end, first, last in reads(sample.memory, sample.length).tolist():
            table[start:end, first:last] = True
        assert torch.equal(ready["reads"], table)
        assert ready["in_memory"].tolist() == (sample.tile_starts < 0).tolist()
        assert ready["memory_tags"].tolist() == sample.memory.tags_mG.tolist()


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_logits_are_the_engines(pair, question):
    """Both compute in float32, in another order. How much that costs the exported model itself is measured against its own
    float64; the engine, which rounds as often, may be off by four times as much. A wrong layout, mask or norm shows as 0.1."""
    _, sample = pair.prompt(question)
    row = pack_row([sample], pair.encoder.data.pack_tokens, pair.tokenizer.pad_id, pair.encoder.geometry.tile_size)
    ready = pair.prepared(question)
    with torch.no_grad():
        engine, exported = pair.engine.logits(row, torch.arange(sample.length)), pair.model(**ready).logits[0]
        exact = pair.exact(**ready).logits[0]
    own = (exported - exact).abs().max()
    assert 0 < own < 1e-3 and exact.abs().max() > 1
    assert (engine - exact).abs().max() < 4 * own


@pytest.mark.parametrize("name", ["several tiles", "two pictures"])
def test_greedy_answers_are_those_of_generate(pair, name):
    question = QUESTIONS[name]
    sample, _ = pair.prompt(question)
    [answer] = ask(pair.engine, pair.encoder, [sample], NEW)
    assert not answer.refused and answer.text
    assert pair.model.chat(pair.words, opened(question[0]), question[1], max_new_tokens=NEW) == answer.text


def test_pictures_change_the_answer(pair):
    """What the tests above compare would be compared in vain if the model said the same to everything."""
    asked = QUESTIONS["several tiles"][1]
    answers = [pair.model.chat(pair.words, opened([png(96, 64, seed)]), asked, max_new_tokens=NEW) for seed in (0, 5)]
    assert answers[0] != answers[1]
