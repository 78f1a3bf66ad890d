"""What a sample becomes in NVLM-X and NVLM-H: which tokens it has, and who reads its tiles."""

from dataclasses import replace

import numpy as np
import pytest
from data_toys import conversation, encoded, picture

from nvlm_train.config import schema
from nvlm_train.contracts import Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import ConfigError

WIDE, SQUARE = encoded(picture(56, 28)), encoded(picture(20, 20))   # 2x1 and 1x1 tiles at 28 px
TINY = load_tokenizer("tiny")
TAG_1, TAG_2, WHOLE = [269, 66, 20, 33], [269, 66, 21, 33], [269, 386, 462, 33]   # <tile_1>, <tile_2>, <tile_global_thumbnail>


def encode(architecture, images=(WIDE,), question="What is it?", *, tag_mask=True, kind="1d", **data):
    model = schema.Model(architecture, vision=schema.Vision(tile_size=28, patch=7), tags=schema.Tags(kind=kind),
                         cross_attention=schema.CrossAttention(tag_mask=tag_mask))
    encoder = Encoder(model, schema.Data(system_prompt=None, **data), TINY)
    sample = Sample("k", "s", tuple(images), conversation(question, "A thing."))
    return encoder, encoder.encode(sample)


def shown(tokens) -> str:
    return TINY.decode(tokens, skip_special=False).replace("<image>" * 4, "#")


def test_x_by_hand():
    _, result = encode("nvlm_x")
    before, after = TINY.encode("user\n<Image>"), TINY.encode("</Image>\nWhat is it?")
    at = 1 + len(before)
    assert result.tokens[1:at + 12 + len(after)].tolist() == before + TAG_1 + TAG_2 + WHOLE + after
    assert shown(result.tokens) == ("<|im_start|>user\n<Image><tile_1><tile_2><tile_global_thumbnail></Image>\nWhat is it?<|im_end|>\n"
                                    "<|im_start|>assistant\nA thing.<|im_end|>\n")
    assert result.tile_starts.tolist() == [-1, -1, -1] and result.tiles.shape == (3, 3, 28, 28)
    assert result.memory.seen_from_m.tolist() == [at + 12] * 3
    assert result.memory.bound_m2.tolist() == [[at, at + 4], [at + 4, at + 8], [at + 8, at + 12]]
    assert result.memory.tags_mG.shape == (3, 0)
    assert shown(result.tokens[result.loss_weights > 0]) == "A thing.<|im_end|>\n"


def test_x_without_the_tag_mask_or_without_tags():
    _, free = encode("nvlm_x", tag_mask=False)
    at = 1 + len(TINY.encode("user\n<Image>"))
    np.testing.assert_array_equal(free.tokens, encode("nvlm_x")[1].tokens)
    assert free.memory.seen_from_m.tolist() == [at] * 3 and (free.memory.bound_m2[:, 0] == free.memory.bound_m2[:, 1]).all()
    for tag_mask in (True, False):
        _, bare = encode("nvlm_x", tag_mask=tag_mask, kind="none")
        assert "<|im_start|>user\n<Image></Image>\nWhat" in shown(bare.tokens)
        assert bare.memory.seen_from_m.tolist() == [at] * 3 and (bare.memory.bound_m2[:, 0] == bare.memory.bound_m2[:, 1]).all()


def test_h_by_hand():
    _, result = encode("nvlm_h")
    at = 1 + len(TINY.encode("user\n<Image>"))
    assert shown(result.tokens) == ("<|im_start|>user\n<Image><tile_global_thumbnail>#</Image>\nWhat is it?<|im_end|>\n"
                                    "<|im_start|>assistant\nA thing.<|im_end|>\n")
    assert result.tokens[at:at + 8].tolist() == WHOLE + [TINY.image_id] * 4
    assert result.tile_starts.tolist() == [-1, -1, at + 4] and len(result.tiles) == 3
    assert result.memory.seen_from_m.tolist() == [at, at] and result.memory.tags_mG.tolist() == [TAG_1, TAG_2]
    assert (result.memory.bound_m2[:, 0] == result.memory.bound_m2[:, 1]).all()


def test_h_has_no_memory_of_one_tile_pictures():
    _, result = encode("nvlm_h", [SQUARE, SQUARE])
    np.testing.assert_array_equal(result.tokens, encode("nvlm_d", [SQUARE, SQUARE])[1].tokens)
    assert result.memory is None and (result.tile_starts > 0).all()
    _, mixed = encode("nvlm_h", [SQUARE, WIDE], "<image> or <image>?")
    second = int(np.flatnonzero(mixed.tokens == TINY.image_id)[4]) - 4     # where the second picture begins: its thumbnail's tag
    assert mixed.memory.seen_from_m.tolist() == [second, second] and (mixed.tile_starts < 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("architecture", ["nvlm_x", "nvlm_h"])
def test_text_alone_has_no_memory(architecture):
    _, result = encode(architecture, [])
    np.testing.assert_array_equal(result.tokens, encode("nvlm_d", [])[1].tokens)
    assert result.memory is None and len(result.tile_starts) == 0


@pytest.mark.parametrize("architecture", ["nvlm_x", "nvlm_h"])
def test_the_pixels_are_those_of_d(architecture):
    images = [WIDE, SQUARE, encoded(picture(84, 56))]
    np.testing.assert_array_equal(encode(architecture, images)[1].tiles, encode("nvlm_d", images)[1].tiles)


@pytest.mark.parametrize("architecture, bare, tags", [("nvlm_d", 2816, 28), ("nvlm_h", 1280, 4), ("nvlm_x", 1024, 28)])
def test_sequence_lengths_of_the_paper(architecture, bare, tags):
    """1,024 tokens of text and 6+1 tiles of 256 (paper Table 3); tags of four tokens each come on top, H's six in the memory."""
    data = schema.Data(max_tokens=4096, pack_tokens=4096)
    for kind, expected in (("none", bare), ("1d", bare + tags)):
        encoder = Encoder(schema.Model(architecture, tags=schema.Tags(kind=kind)), data, TINY)
        plan = encoder.plan(1024, [(3 * 448, 2 * 448)])
        assert (plan.tokens, plan.tiles) == (expected, 7)


def test_a_resamplers_tokens_are_counted():
    model = schema.Model("nvlm_d", connector=schema.Connector(resampler_tokens=64), tags=schema.Tags(kind="none"))
    assert Encoder(model, schema.Data(), TINY).plan(100, [(448, 448)]).tokens == 164


def test_a_tag_too_long_for_the_memory_is_refused_at_once():
    def build(architecture="nvlm_h", room=4, max_tiles=6, kind="1d"):
        return Encoder(schema.Model(architecture, tags=schema.Tags(kind=kind, max_tokens=room)), schema.Data(max_tiles=max_tiles), TINY)

    with pytest.raises(ConfigError, match="'<tile_1>' is 4 tokens of tokenizer tiny, and model.tags.max_tokens keeps room for 3 .* to 4"):
        build(room=3)
    with pytest.raises(ConfigError, match="'<tile_10>' is 5 tokens.* room for 4 "):
        build(max_tiles=12)
    with pytest.raises(ConfigError, match="</box>' is .* tokens.* room for 8 "):
        build(room=8, kind="2d_bbox")
    # Room for the longest; no regular tile, no tag in the memory; and only H has tags there.
    built = [build(), build(room=5, max_tiles=12), build(room=0, max_tiles=1), build("nvlm_x", 0), build("nvlm_d", 0)]
    assert [encoder.plan(0, [(448, 448)]).tiles for encoder in built] == [1] * 5


def test_a_prompt_has_the_memory_of_its_sample():
    for architecture in ("nvlm_x", "nvlm_h"):
        encoder, whole = encode(architecture, [WIDE, SQUARE])
        prompt = encoder.encode_prompt(Sample("k", "s", (WIDE, SQUARE), conversation("What is it?", "A thing.")))
        np.testing.assert_array_equal(prompt.tokens, whole.tokens[:prompt.length])
        for field in ("seen_from_m", "bound_m2", "tags_mG"):
            np.testing.assert_array_equal(getattr(prompt.memory, field), getattr(whole.memory, field))


def test_describe_shows_who_reads_what():
    encoder, result = encode("nvlm_x")
    lines = encoder.describe(result).splitlines()
    assert lines[0].endswith("3 tiles, 3 of them in memory")
    assert [line.strip() for line in lines[2:5]] == [
        "context  '<tile_1>'  (bound to tile 1)", "context  '<tile_2>'  (bound to tile 2)",
        "context  '<tile_global_thumbnail>'  (bound to tile 3)"]
    assert lines[-1].strip() == r"learned  'A thing.<|im_end|>\n'  (reads tiles 1-3)" and "(" not in lines[1]
    encoder, result = encode("nvlm_h", [WIDE, WIDE])
    lines = encoder.describe(result).splitlines()
    assert "  context  [4 image tokens]  (reads tiles 1-2)" in lines and "  context  [4 image tokens]  (reads tiles 1-2, 4-5)" in lines
    assert lines[-4:] == [f"  memory   tile {tile}, after its tag '{tag}'"
                          for tile, tag in ((1, "<tile_1>"), (2, "<tile_2>"), (4, "<tile_1>"), (5, "<tile_2>"))]
    moved = replace(result, memory=None, tile_starts=np.zeros(0, np.int64))
    assert not any("reads" in line or "memory" in line for line in encoder.describe(moved).splitlines())
