"""Pipelines played through: textbook bubbles, uneven stages, messages."""

import pytest

from nvlm_train.planning.schedule import BACKWARD, FORWARD, order, play


def even(pieces: int, rows: int, seconds: float) -> list[list[float]]:
    return [[seconds] * rows for _ in range(pieces)]


@pytest.mark.parametrize(("stages", "rows"), [(1, 5), (2, 2), (4, 1), (4, 8), (8, 5)])
def test_one_forward_one_backward_takes_rows_and_stages_less_one(stages, rows):
    played = play(even(stages, rows, 1.0), even(stages, rows, 2.0), stages)
    assert played.seconds == pytest.approx((rows + stages - 1) * 3.0)
    assert played.bubble == pytest.approx((stages - 1) / (rows + stages - 1))


@pytest.mark.parametrize(("stages", "virtual", "rows"), [(2, 2, 4), (4, 2, 8), (4, 4, 8)])
def test_virtual_stages_divide_the_bubble(stages, virtual, rows):
    pieces = stages * virtual
    played = play(even(pieces, rows, 1.0 / virtual), even(pieces, rows, 2.0 / virtual), stages)
    assert played.seconds == pytest.approx(rows * 3.0 + (stages - 1) * 3.0 / virtual)


def test_the_slowest_stage_sets_the_pace():
    forward, backward = even(4, 32, 1.0), even(4, 32, 2.0)
    forward[0] = [5.0] * 32
    played = play(forward, backward, 4)
    assert played.seconds >= 32 * 7.0
    assert played.busy[0] == pytest.approx(32 * 7.0) and played.busy[1] == pytest.approx(32 * 3.0)


def test_one_heavy_row_is_waited_for_once():
    """All of its excess shows where every stage waits, and nothing of it twice."""
    rows, excess = 8, 3.0
    forward = even(2, rows, 1.0)
    forward[0][4] += excess
    plain = play(even(2, rows, 1.0), even(2, rows, 1.0), 2).seconds
    assert plain < play(forward, even(2, rows, 1.0), 2).seconds <= plain + excess


def test_messages_make_a_pipeline_longer():
    quiet = play(even(4, 8, 1.0), even(4, 8, 2.0), 4)
    assert play(even(4, 8, 1.0), even(4, 8, 2.0), 4, 0.1).seconds > quiet.seconds
    assert play(even(1, 8, 1.0), even(1, 8, 2.0), 1, 0.1).seconds == pytest.approx(24.0)


@pytest.mark.parametrize(("stages", "virtual", "rows"), [(1, 1, 3), (4, 1, 2), (4, 1, 9), (2, 2, 4), (4, 3, 8)])
def test_every_row_goes_through_every_piece_once_each_way(stages, virtual, rows):
    for stage in range(stages):
        works = list(order(stage, stages, virtual, rows))
        pieces = range(stage, stages * virtual, stages)
        assert sorted(works) == sorted((kind, piece, row) for kind in (FORWARD, BACKWARD) for piece in pieces for row in range(rows))


def test_broken_rounds_are_refused():
    with pytest.raises(ValueError, match="5 rows are no whole rounds of 4 stages"):
        play(even(8, 5, 1.0), even(8, 5, 1.0), 4)
