"""A tokenizer gets a token for a picture's place where it has none and its embedding has room."""

import json

import pytest
import tokenizers
from hf_folders import TOKENIZER

from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.errors import CheckpointError
from nvlm_train.huggingface.tokenizer_file import LATER_QWEN, prepare_tokenizer


def vocabulary(size, *special):
    """A tokenizer.json of `size` pieces, the special tokens behind them."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE({f"piece{n}": n for n in range(size)}, []))
    library.add_special_tokens(list(special))
    return library.to_str().encode()


def test_one_that_has_a_placeholder_is_left_as_it_is():
    prepared = prepare_tokenizer(TOKENIZER, 1024, "x")
    assert prepared.contents == TOKENIZER and prepared.note is None


def test_qwen2_gets_the_token_of_later_releases():
    """151,643 pieces and Qwen2's three special tokens: 151654 is <|vision_pad|> in every release since."""
    qwen2 = vocabulary(151_643, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    prepared = prepare_tokenizer(qwen2, 151_936, "x")
    tokenizer = Tokenizer(prepared.contents, "qwen2")
    assert (tokenizer.eos_id, tokenizer.image_id, tokenizer.vocab_size) == (151_645, 151_654, 151_655)
    assert [tokenizer.special(name) for name in LATER_QWEN] == list(range(151_646, 151_655))
    assert "added as 151,654" in prepared.note
    before, after = json.loads(qwen2), json.loads(prepared.contents)
    assert after["added_tokens"][:len(before["added_tokens"])] == before["added_tokens"] and after["model"] == before["model"]


def test_another_gets_the_next_free_id():
    prepared = prepare_tokenizer(vocabulary(100, "<|im_start|>", "<|im_end|>"), 128, "x")
    assert Tokenizer(prepared.contents, "other").image_id == 102


def test_without_room_it_is_left_and_said():
    full = vocabulary(100, "<|im_start|>", "<|im_end|>")
    prepared = prepare_tokenizer(full, 102, "x")
    assert prepared.contents == full and "102 ids leave no room for one in 102 rows" in prepared.note


def test_what_cannot_serve_is_refused():
    with pytest.raises(CheckpointError, match="ids up to 101, and the embedding 101 rows"):
        prepare_tokenizer(vocabulary(100, "<|im_start|>", "<|im_end|>"), 101, "x")
    for broken in (b"", b"[]", b'{"model": 3}'):
        with pytest.raises(CheckpointError, match="cannot be read"):
            prepare_tokenizer(broken, 100, "x")
