import numpy as np
import pytest

from nvlm_train.contracts import TileMemory
from nvlm_train.data.layout import join_memory, lay_out, reads, shift_starts, stack_tags, tile_places
from nvlm_train.errors import ConfigError

IMAGE = 9
TAGS = ((11, 21), (12, 22, 32), (13,))   # of a picture of two tiles and a thumbnail
NO_TAGS = ((), (), ())


def laid_out(architecture, tags=TAGS, tag_mask=True, thumbnail=True, tile_tokens=2):
    return lay_out(tile_places(architecture, tag_mask, tags, thumbnail), tile_tokens, IMAGE)


def numbers(layout):
    memory = layout.memory
    return (layout.tokens.tolist(), layout.tile_starts.tolist(), memory.seen_from_m.tolist(), memory.bound_m2.tolist(),
            memory.tags_mG.tolist())


def memory_of(seen_from, bound=None) -> TileMemory:
    bound = [(0, 0)] * len(seen_from) if bound is None else bound
    return TileMemory(np.array(seen_from, np.int64), np.array(bound, np.int64).reshape(-1, 2), np.zeros((len(seen_from), 0), np.int64))


def test_d_has_everything_in_the_sequence():
    assert numbers(laid_out("nvlm_d")) == ([11, 21, 9, 9, 12, 22, 32, 9, 9, 13, 9, 9], [2, 7, 10], [], [], [])


def test_x_has_tags_in_the_sequence_each_bound_to_its_tile():
    assert numbers(laid_out("nvlm_x")) == ([11, 21, 12, 22, 32, 13], [-1] * 3, [6] * 3, [[0, 2], [2, 5], [5, 6]], [[]] * 3)


@pytest.mark.parametrize("tags, tag_mask, tokens", [(TAGS, False, [11, 21, 12, 22, 32, 13]), (NO_TAGS, False, []), (NO_TAGS, True, [])])
def test_x_without_bound_tags_is_read_from_the_pictures_place_on(tags, tag_mask, tokens):
    assert numbers(laid_out("nvlm_x", tags, tag_mask)) == (tokens, [-1] * 3, [0] * 3, [[0, 0]] * 3, [[]] * 3)


@pytest.mark.parametrize("tag_mask", [True, False])
def test_h_keeps_the_thumbnail_and_remembers_the_rest_with_its_tags(tag_mask):
    assert numbers(laid_out("nvlm_h", tag_mask=tag_mask)) == (
        [13, 9, 9], [-1, -1, 1], [0, 0], [[0, 0]] * 2, [[11, 21, -1], [12, 22, 32]])
    assert numbers(laid_out("nvlm_h", NO_TAGS)) == ([9, 9], [-1, -1, 0], [0, 0], [[0, 0]] * 2, [[], []])


@pytest.mark.parametrize("thumbnail", [True, False])
def test_h_has_no_memory_of_a_picture_of_one_tile(thumbnail):
    assert numbers(laid_out("nvlm_h", TAGS[2:], thumbnail=thumbnail)) == ([13, 9, 9], [1], [], [], [])


def test_h_without_thumbnails_has_nothing_of_a_large_picture_in_the_sequence():
    assert numbers(laid_out("nvlm_h", TAGS[:2], thumbnail=False)) == ([], [-1, -1], [0, 0], [[0, 0]] * 2, [[11, 21, -1], [12, 22, 32]])


def test_another_architecture_is_refused_by_name():
    with pytest.raises(ConfigError, match="model.architecture is 'nvlm_z'; pictures can be laid out for nvlm_d, nvlm_x, nvlm_h"):
        laid_out("nvlm_z")


def test_pictures_join_at_their_places():
    x, h = laid_out("nvlm_x").memory, laid_out("nvlm_h").memory
    joined = join_memory([x, x], [4, 20])
    assert joined.seen_from_m.tolist() == [10, 10, 10, 26, 26, 26]
    assert joined.bound_m2.tolist() == [[4, 6], [6, 9], [9, 10], [20, 22], [22, 25], [25, 26]]
    single = laid_out("nvlm_h", TAGS[2:]).memory
    mixed = join_memory([single, h], [3, 8])
    assert mixed.seen_from_m.tolist() == [8, 8] and mixed.tags_mG.tolist() == [[11, 21, -1], [12, 22, 32]]
    assert join_memory([single, laid_out("nvlm_d").memory], [0, 5]) is None and join_memory([], []) is None


def test_tags_are_padded_to_the_longest():
    parts = [np.array([[1]]), np.zeros((2, 0), np.int64), np.array([[2, 3, -1], [4, 5, 6]])]
    assert stack_tags(parts).tolist() == [[1, -1, -1], [-1] * 3, [-1] * 3, [2, 3, -1], [4, 5, 6]]
    assert stack_tags([]).shape == (0, 0)


def test_only_tiles_in_the_sequence_are_shifted():
    assert shift_starts(np.array([0, -1, 7]), 5).tolist() == [5, -1, 12]


@pytest.mark.parametrize("seen_from, bound, length, expected", [
    ([], [], 9, []),
    ([0], None, 3, [[0, 3, 0, 1]]),
    ([2, 2, 2], None, 9, [[2, 9, 0, 3]]),
    ([2, 2, 6], None, 9, [[2, 6, 0, 2], [6, 9, 0, 3]]),
    ([9], None, 9, []),                                                                     # nothing comes after the picture
    ([6, 6], [(2, 4), (4, 6)], 9, [[2, 4, 0, 1], [4, 6, 1, 2], [6, 9, 0, 2]]),
    ([3], [(1, 3)], 7, [[1, 7, 0, 1]]),                                                     # its tag and the text read the one tile
    ([3, 6], [(1, 3), (5, 6)], 9, [[1, 5, 0, 1], [5, 6, 1, 2], [6, 9, 0, 2]]),              # a bound tag sees no earlier picture
    ([1, 6], [(0, 0), (4, 6)], 9, [[1, 4, 0, 1], [4, 6, 1, 2], [6, 9, 0, 2]]),              # only the second picture has tags
    ([5, 5], [(0, 2), (4, 5)], 6, [[0, 2, 0, 1], [4, 5, 1, 2], [5, 6, 0, 2]]),              # between the tags nothing is read
])
def test_who_reads_what(seen_from, bound, length, expected):
    table = reads(memory_of(seen_from, bound), length)
    assert table.tolist() == expected and table.dtype == np.int64 and table.shape == (len(expected), 4)
