"""The loader for every architecture, on the built-in tiny shards."""

from dataclasses import replace

import pytest
import torch
from data_toys import small_model

from data_prep.tiny import ensure
from nvlm_train.config import schema
from nvlm_train.data.layout import ARCHITECTURES
from nvlm_train.data.loader import build_loader, validation_rows
from nvlm_train.data.tokenizer import load_tokenizer

TINY = load_tokenizer("tiny")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return ensure("tiny", tmp_path_factory.mktemp("cache"))


def make_run(folder, architecture) -> schema.Run:
    model = replace(small_model(architecture), language=schema.Language(vocab=1024))
    blend = {"sft": schema.Source(str(folder / "sft"), 2.0), "text": schema.Source(str(folder / "text"))}
    return schema.Run("test", "sft", model=model, train=schema.Train(steps=3, global_batch=8, seed=5), data=schema.Data(
        blend=blend, validation={"validation": schema.Source(str(folder / "validation"))}, max_tokens=250, pack_tokens=400, pack_tiles=21))


@pytest.fixture(scope="module")
def steps(tiny):
    """Three steps of every architecture."""
    found = {}
    for architecture in ARCHITECTURES:
        with build_loader(make_run(tiny, architecture), TINY, 0, 1) as loader:
            found[architecture] = list(loader)
    return found


def test_the_architecture_changes_neither_slots_nor_what_is_learned(steps):
    for step_d, step_x, step_h in zip(*(steps[architecture] for architecture in ARCHITECTURES), strict=True):
        assert list(step_d.slots) == list(step_x.slots) == list(step_h.slots) and not any(slot.refused for slot in step_d.slots)
        learned = [sorted((key, *_learned(row, i)) for row in step.rows for i, key in enumerate(row.keys))
                   for step in (step_d, step_x, step_h)]
        assert learned[0] == learned[1] == learned[2] and len(learned[0]) == 8
        tokens, tiles = ([sum(count(row) for row in step.rows) for step in (step_d, step_x, step_h)] for count in (
            lambda row: row.real_tokens, lambda row: len(row.tiles_nCPP)))
        assert tokens[0] - tokens[1] == 4 * tiles[0] and tokens[2] < tokens[0]   # X lacks every tile's four visual tokens
        assert tiles[0] == tiles[1] == tiles[2] > 0


def _learned(row, sample) -> list[int]:
    span = slice(*row.cu_seqlens[sample:sample + 2].tolist())
    return row.labels_T[span][row.loss_weights_T[span] > 0].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiles_are_in_the_sequence_or_in_memory(steps, architecture):
    in_memory = 0
    for row in (row for step in steps[architecture] for row in step.rows):
        m = int((row.tile_starts_n < 0).sum())
        assert len(row.tile_starts_n) == len(row.tiles_nCPP) and len(row.memory_tags_mG) == m
        assert int((row.tokens_T == TINY.image_id).sum()) == 4 * (len(row.tiles_nCPP) - m)
        assert all((row.tokens_T[at:at + 4] == TINY.image_id).all() for at in row.tile_starts_n if at >= 0)
        assert sorted({tile for _, _, first, last in row.reads_s4.tolist() for tile in range(first, last)}) == list(range(m))
        in_memory += m
    tiles = [len(row.tiles_nCPP) for step in steps[architecture] for row in step.rows]
    assert (in_memory == sum(tiles)) == (architecture == "nvlm_x") and (in_memory == 0) == (architecture == "nvlm_d")


@pytest.mark.parametrize("architecture", ["nvlm_x", "nvlm_h"])
def test_every_learned_token_of_a_sample_reads_all_its_memory(steps, architecture):
    """The answers come last, so they read every memory tile of their own sample; text-only samples read nothing."""
    seen = []
    for row in (row for step in steps[architecture] for row in step.rows):
        counts = torch.zeros(len(row.tokens_T), dtype=torch.long)
        for start, end, first, last in row.reads_s4.tolist():
            counts[start:end] = last - first
        for i, source in enumerate(row.sources):
            start, end = row.cu_seqlens[i:i + 2].tolist()
            learned = counts[start:end][row.loss_weights_T[start:end] > 0]
            assert (learned == counts[start:end].max()).all() and (source != "text" or learned.max() == 0)
            seen.append(int(learned[0]))
        assert not counts[row.real_tokens:].any()
    assert 0 in seen and max(seen) > 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_validation_rows_have_their_memory(tiny, architecture):
    rows = validation_rows(make_run(tiny, architecture), TINY, 0, 1, limit=1)
    assert len(rows) > 0
    assert any(len(row.reads_s4) for row in rows) == (architecture != "nvlm_d")
