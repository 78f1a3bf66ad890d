"""Which tokens of a row read which tiles of its memory, against a matrix filled in token by token from the models' definition."""

from functools import cache

import numpy as np
import pytest
import torch
from data_toys import conversation, encoded, picture, small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nvlm_train.config import schema
from nvlm_train.contracts import EncodedSample, Sample, TileMemory
from nvlm_train.data import chat
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tags import tile_tags
from nvlm_train.data.tiling import choose_grid
from nvlm_train.errors import DataError

GRIDS = ((1, 1), (2, 1), (1, 3), (2, 2), (3, 2))
PICTURES = {grid: encoded(picture(28 * grid[0], 28 * grid[1]), "PNG") for grid in GRIDS}

# A sample: grids of the pictures in its question and in its answer, words before each
sample_strategy = st.tuples(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(GRIDS)), max_size=3),
                            st.lists(st.tuples(st.integers(0, 3), st.sampled_from(GRIDS)), max_size=1))
setting_strategy = st.tuples(st.sampled_from(["nvlm_d", "nvlm_x", "nvlm_h"]), st.booleans(), st.sampled_from(["none", "1d", "2d_grid"]),
                             st.sampled_from([1, 4, 6]), st.booleans())


@cache
def encoder_of(tokenizer, architecture, tag_mask, kind, max_tiles, thumbnail) -> Encoder:
    data = schema.Data(max_tokens=1000, pack_tokens=1000, pack_tiles=50, max_tiles=max_tiles, thumbnail=thumbnail, system_prompt=None)
    return Encoder(small_model(architecture, tag_mask, kind=kind), data, tokenizer)


def make_sample(number, question, answer) -> Sample:
    text = ["".join("word " * words + "<image>" for words, _ in part) + end for part, end in ((question, "What?"), (answer, " That."))]
    return Sample(f"k{number}", "s", tuple(PICTURES[grid] for _, grid in (*question, *answer)), conversation(*text))


def definition(encoder: Encoder, sample: Sample, grids) -> tuple[list[int], np.ndarray, list[list[int]]]:
    """The sample's tokens, its visibility matrix [tokens, memory tiles] and its memory tiles' tags, spelled out."""
    model, tokenizer = encoder.model, encoder.tokenizer
    tags = [[tokenizer.encode(tag) for tag in tile_tags(model.tags, choose_grid(28 * c, 28 * r, encoder.data.max_tiles, 28), 28,
                                                        encoder.data.thumbnail)] for c, r in grids]

    def in_memory(p, t):
        if model.architecture == "nvlm_h":
            is_whole = len(tags[p]) == 1 or (encoder.data.thumbnail and t == len(tags[p]) - 1)
            return not is_whole
        return model.architecture == "nvlm_x"

    tokens, roles, seen = [], [], 0   # a role: (pictures begun before or at the token, the picture and tile whose tag it is)
    for segment in chat.render(sample.turns, len(sample.images), "chat", None):
        if isinstance(segment, chat.Picture):
            p = segment.index
            seen = p + 1
            for t, tag in enumerate(tags[p]):
                if model.architecture != "nvlm_h" or not in_memory(p, t):
                    tokens += tag
                    roles += [(seen, (p, t))] * len(tag)
                if not in_memory(p, t):
                    tokens += [tokenizer.image_id] * 4
                    roles += [(seen, None)] * 4
        else:
            ids = [tokenizer.special(segment.token)] if isinstance(segment, chat.Special) else tokenizer.encode(segment.text)
            tokens += ids
            roles += [(seen, None)] * len(ids)
    memory = [(p, t) for p in range(len(tags)) for t in range(len(tags[p])) if in_memory(p, t)]
    masked = model.architecture == "nvlm_x" and model.cross_attention.tag_mask
    sees = np.zeros((len(tokens), len(memory)), bool)
    for i, (begun, own) in enumerate(roles):
        for j, tile in enumerate(memory):
            sees[i, j] = tile == own if masked and own is not None else tile[0] < begun
    return tokens, sees, [tags[p][t] if model.architecture == "nvlm_h" else [] for p, t in memory]


def block_diagonal(blocks, rows, columns) -> np.ndarray:
    whole, i, j = np.zeros((rows, columns), bool), 0, 0
    for block in blocks:
        whole[i:i + block.shape[0], j:j + block.shape[1]] = block
        i, j = i + block.shape[0], j + block.shape[1]
    return whole


@settings(max_examples=60, deadline=None)
@given(setting_strategy, st.lists(sample_strategy, max_size=4))
@example(("nvlm_x", True, "1d", 6, True), [([], []), ([(0, (3, 2)), (0, (1, 1))], [(2, (2, 1))]), ([(1, (2, 2))], [])])
@example(("nvlm_h", True, "1d", 6, True), [([(2, (1, 1)), (0, (3, 2))], []), ([], []), ([(0, (2, 1))], [(1, (2, 2))])])
def test_a_row_reads_what_the_definition_says(tokenizer, setting, made):
    encoder = encoder_of(tokenizer, *setting)
    samples = [make_sample(i, *one) for i, one in enumerate(made)]
    expected = [definition(encoder, sample, [grid for _, grid in (*one[0], *one[1])]) for sample, one in zip(samples, made, strict=True)]
    results = [encoder.encode(sample) for sample in samples]
    for result, (tokens, sees, _) in zip(results, expected, strict=True):
        assert result.tokens.tolist() == tokens and (result.memory is not None) == (sees.shape[1] > 0)

    total = sum(result.length for result in results) + 5
    row = pack_row(results, total, tokenizer.pad_id, 28)
    tags = [tag for _, _, part in expected for tag in part]
    assert [[i for i in tag if i >= 0] for tag in row.memory_tags_mG.tolist()] == tags
    assert row.memory_tags_mG.shape == (len(tags), max(map(len, tags), default=0)) and (row.tile_starts_n < 0).sum() == len(tags)

    found, end_before, tiles_before = np.zeros((total, len(tags)), bool), 0, None
    for start, end, first, last in row.reads_s4.tolist():
        assert end_before <= start < end and 0 <= first < last <= len(tags)
        assert (start, tiles_before) != (end_before, (first, last)), "neighbours that read the same are one range"
        found[start:end, first:last] = True
        end_before, tiles_before = end, (first, last)
    np.testing.assert_array_equal(found, block_diagonal([sees for _, sees, _ in expected], total, len(tags)))


def with_memory(key, length, seen_from, tags) -> EncodedSample:
    m = len(seen_from)
    memory = TileMemory(np.array(seen_from, np.int64), np.zeros((m, 2), np.int64), np.array(tags, np.int64).reshape(m, -1))
    return EncodedSample(key, "s", np.arange(length), np.zeros(length, np.float32), np.zeros((m, 3, 4, 4), np.uint8),
                         np.full(m, -1), memory)


def text(key, length) -> EncodedSample:
    return EncodedSample(key, "s", np.arange(length), np.zeros(length, np.float32), np.zeros((0, 3, 4, 4), np.uint8), np.zeros(0, np.int64))


def test_a_row_numbers_its_memory_through():
    a, b = with_memory("a", 6, [2, 2], [[7], [8]]), with_memory("b", 5, [0, 4], [[5, 6], [9, -1]])
    row = pack_row([text("t", 3), a, text("u", 2), b], 20, pad_id=0, tile_size=4)
    assert row.reads_s4.tolist() == [[5, 9, 0, 2], [11, 15, 2, 3], [15, 16, 2, 4]]
    assert row.memory_tags_mG.tolist() == [[7, -1], [8, -1], [5, 6], [9, -1]]
    assert row.tile_starts_n.tolist() == [-1] * 4
    assert row.reads_s4.dtype == row.memory_tags_mG.dtype == torch.int64
    swapped = pack_row([b, a], 20, pad_id=0, tile_size=4)
    assert swapped.reads_s4.tolist() == [[0, 4, 0, 1], [4, 5, 0, 2], [7, 11, 2, 4]]


def test_a_row_without_memory_reads_nothing():
    for row in (pack_row([], 8, 0, 4), pack_row([text("t", 3)], 8, 0, 4)):
        assert row.reads_s4.shape == (0, 4) and row.memory_tags_mG.shape == (0, 0)
        assert row.reads_s4.dtype == row.memory_tags_mG.dtype == torch.int64


@pytest.mark.parametrize("starts", [[-1, 2], [-1, -1, -1]])
def test_a_memory_of_other_tiles_is_refused(starts):
    sample = with_memory("odd", 6, [2, 2], [[7], [8]])
    broken = EncodedSample(sample.key, "s", sample.tokens, sample.loss_weights, sample.tiles, np.array(starts), sample.memory)
    with pytest.raises(DataError, match=f"odd: {starts.count(-1)} of its tiles are not in the sequence, its memory describes 2"):
        pack_row([broken], 8, 0, 4)
