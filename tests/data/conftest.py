"""Fixtures of the data tests: a small real tokenizer, encoders, and a folder of shards."""

import pytest
import tokenizers
from data_toys import make_samples, small_model

from data_prep.shards import write_shards
from nvlm_train.config import schema
from nvlm_train.data.encode import Encoder
from nvlm_train.data.tokenizer import Tokenizer

CORPUS = ["A red square and a blue circle on white.", "What colour is the shape? It is green.", "user assistant system",
          "Follow the user's instruction and answer questions.", "Describe the picture in one sentence. <Image></Image><tile_1>"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """A byte-level BPE trained on a few sentences, as a tokenizer.json."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.train_from_iterator(CORPUS * 4, tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file):
    return Tokenizer(tokenizer_file.read_bytes(), "test")


@pytest.fixture
def make_encoder(tokenizer):
    """make_encoder(kind="1d", architecture="nvlm_d", tag_mask=True, **data settings) -> Encoder of the small model."""
    def make(kind="1d", architecture="nvlm_d", tag_mask=True, **data):
        settings = {"max_tokens": 200, "pack_tokens": 256, "pack_tiles": 14, **data}
        return Encoder(small_model(architecture, tag_mask, kind=kind), schema.Data(**settings), tokenizer)
    return make


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory):
    """60 good samples in shards of 25. Read-only by agreement: tests that damage files make their own."""
    folder = tmp_path_factory.mktemp("shards") / "mixed"
    write_shards(folder, make_samples(60), samples_per_shard=25)
    return folder


@pytest.fixture(scope="session")
def shared_encoder(tokenizer):
    """One encoder for property tests, which may not use a fixture per example."""
    return Encoder(small_model(), schema.Data(max_tokens=200, pack_tokens=256, pack_tiles=14), tokenizer)
