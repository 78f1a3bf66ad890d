"""A blend that changes while a run goes on: which samples come next, what is remembered, and what is refused."""

import json
from collections import Counter

import pytest

from nvlm_train.data.order import BlendSource, Order
from nvlm_train.data.segments import order_of, plan
from nvlm_train.errors import ConfigError

PATHS = {"a": "/a", "b": "/b", "c": "/c"}


def blend(**weights):
    sizes = {"a": 70, "b": 40, "c": 30}
    return [BlendSource(name, sizes[name], weight, content=f"content of {name}") for name, weight in weights.items()]


def taken(order, first, last):
    return [(order.sources[pick.source].name, pick.sample) for pick in order.between(first, last)]


def through_json(segments):
    return json.loads(json.dumps(list(segments)))


def test_the_same_blend_goes_on_in_its_segment():
    first = plan(1, blend(a=0.7, b=0.3), 0, PATHS)
    assert first.order.fingerprint == Order(1, blend(a=0.7, b=0.3)).fingerprint and len(first.segments) == 1
    again = plan(1, blend(a=7, b=3), 0, PATHS, through_json(first.segments), 500)      # the same shares in other numbers
    assert len(again.segments) == 1 and again.order.fingerprint == first.order.fingerprint


def test_changed_blends_lose_and_repeat_nothing(caplog):
    """Over three segments every source still gives each sample once before it gives one twice, also one that paused."""
    first = plan(1, blend(a=0.5, b=0.5), 0, PATHS)
    second = plan(1, blend(b=0.2, c=0.8), 0, PATHS, through_json(first.segments), 123)
    third = plan(1, blend(a=0.6, b=0.1, c=0.3), 0, PATHS, through_json(second.segments), 333)
    assert "from slot 123 on it is b 20.0%, c 80.0%; it was a 50.0%, b 50.0%" in caplog.text
    assert [segment["first_slot"] for segment in third.segments] == [0, 123, 333]
    slots = taken(first.order, 0, 123) + taken(second.order, 123, 333) + taken(third.order, 333, 1800)
    for name, size in (("a", 70), ("b", 40), ("c", 30)):
        samples = [sample for source, sample in slots if source == name]
        for start in range(0, len(samples) - size + 1, size):
            assert sorted(samples[start:start + size]) == list(range(size))
        assert third.order.drawn(1800)[[source.name for source in third.order.sources].index(name)] == len(samples)
    counts = Counter(name for name, _ in slots[333:1333])
    assert counts == {"a": 600, "b": 100, "c": 300}
    # The records alone give the same order back.
    shards = {name: (size,) for name, size in (("a", 70), ("b", 40), ("c", 30))}
    rebuilt = [order_of(segment, shards) for segment in through_json(third.segments)]
    assert taken(rebuilt[1], 123, 333) == taken(second.order, 123, 333)
    assert taken(rebuilt[2], 333, 400) == taken(third.order, 333, 400)


def test_a_segment_that_was_never_trained_on_is_replaced():
    first = plan(1, blend(a=0.5, b=0.5), 0, PATHS)
    second = plan(1, blend(a=0.1, b=0.9), 0, PATHS, first.segments, 60)
    third = plan(1, blend(a=0.9, b=0.1), 0, PATHS, second.segments, 60)
    assert [segment["first_slot"] for segment in third.segments] == [0, 60]
    assert third.order.given == second.order.given


def test_another_folder_under_an_old_name_is_a_new_source():
    first = plan(1, blend(a=0.5, b=0.5), 0, PATHS)
    other = [BlendSource("a", 10, 0.5, content="else"), blend(b=0.5)[0]]
    found = plan(1, other, 0, {**PATHS, "a": "/other"}, first.segments, 100)
    assert found.order.given == {"a": 0, "b": first.order.drawn(100)[1]}
    from_a = [sample for name, sample in taken(found.order, 100, 130) if name == "a"]
    assert sorted(from_a[:10]) == list(range(10))


@pytest.mark.parametrize("change, told", [
    ({"seed": 2}, "train.seed is 2, it was 1"),
    ({"window": 50}, "data.shuffle_window is 50, it was 0"),
    ({"sources": [BlendSource("a", 71, 0.5, content="changed"), blend(b=0.5)[0]]}, r"the shards of a \(/a\) are others: 71 samples"),
])
def test_changes_that_would_repeat_samples_are_refused(change, told):
    settings = {"seed": 1, "sources": blend(a=0.5, b=0.5), "window": 0}
    history = plan(**settings, paths=PATHS).segments
    with pytest.raises(ConfigError, match=told):
        plan(**{**settings, **change}, paths=PATHS, history=history, cursor=100)


def test_epochs_count_over_segments():
    first = plan(1, blend(a=1), 0, PATHS)
    finite = [BlendSource("a", 70, 1.0, epochs=2, content="content of a"), blend(b=0.5)[0]]
    order = plan(1, finite, 0, PATHS, first.segments, 100).order
    with pytest.raises(ConfigError, match="140"):
        order.require(200)      # 100 were given before, and 40 of two epochs are left
    order.require(150)
