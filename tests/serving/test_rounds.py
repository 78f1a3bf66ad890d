"""The model's thread and the ranks that follow it: the same calls in the same order, also when nothing is asked."""

import queue
import threading

import pytest
from serving_toys import ENCODER, Scripted, user, wait_until

from nvlm_train.errors import ConfigError, DataError
from nvlm_train.generation.request import Request, Sampling
from nvlm_train.serving import worker
from nvlm_train.serving.messages import Message
from nvlm_train.serving.opening import refuse_copies
from nvlm_train.serving.prompts import sample_of
from nvlm_train.serving.worker import Inbox, Orders, Refused, Worker, follow, play_round

PROMPT = ENCODER.encode_prompt(sample_of([Message("user", (user("hello")["messages"][0]["content"],))], "key"))


def request(name, longest=8):
    return Request(name, PROMPT, Sampling(longest))


def test_orders_are_taken_together_and_waited_for():
    inbox = Inbox()
    assert inbox.take(0.01) == Orders()
    inbox.submit(request("a"))
    inbox.cancel("a")
    inbox.submit(request("b"))
    inbox.stop()
    orders = inbox.take(10)
    assert ([each.id for each in orders.requests], orders.cancelled, orders.stop) == (["a", "b"], ("a",), True)


def test_a_request_that_is_not_taken_is_told_so_and_the_others_go_on():
    generator = Scripted(lambda request: "yes")
    take = generator.submit

    def submit(asked):
        if asked.id == "large":
            raise DataError("it does not fit")
        take(asked)

    generator.submit = submit
    told = play_round(generator, Orders((request("large"), request("small"))))
    assert told[0] == Refused("large", "it does not fit")
    assert [news.id for news in told[1:]] == ["small"]


@pytest.fixture
def two_ranks(monkeypatch):
    """(inbox, both ranks' generators, what was delivered, how often orders were shared)."""
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.02)
    passed, beats = queue.SimpleQueue(), []
    generators = [Scripted(lambda asked: f"the answer to {asked.id} " * 8, pause_s=0.005) for _ in range(2)]
    calls = [record(generator) for generator in generators]

    def share_main(orders):
        beats.append(orders)
        passed.put(orders)
        return orders

    delivered, ended, inbox = [], [], Inbox()
    main = Worker(inbox, lambda: (generators[0], share_main), delivered.extend, ended.append)
    other = threading.Thread(target=follow, args=(generators[1], lambda _: passed.get(timeout=10)))
    main.start()
    other.start()
    yield inbox, generators, calls, delivered, beats
    inbox.stop()
    main.join(10)
    other.join(10)
    assert not main.is_alive() and not other.is_alive() and ended == [None]


def record(generator):
    calls = []

    def recorded(name, real):
        def called(*arguments):
            calls.append((name, *(getattr(each, "id", each) for each in arguments)))
            return real(*arguments)
        return called

    for name in ("submit", "cancel", "step"):
        setattr(generator, name, recorded(name, getattr(generator, name)))
    return calls


def test_other_ranks_mirror_the_main_one(two_ranks):
    inbox, generators, calls, delivered, _ = two_ranks
    for name in "abcdef":
        inbox.submit(request(name, longest=40))
    wait_until(lambda: len(delivered) > 20)
    inbox.cancel("b")
    wait_until(lambda: not generators[0].busy)
    wait_until(lambda: not generators[1].busy)
    wait_until(lambda: calls[0] == calls[1])
    assert [call for call in calls[0] if call[0] != "step"] == [*(("submit", name) for name in "abcdef"), ("cancel", "b")]
    finished = {news.id for news in delivered if news.finish}
    assert finished == set("acdef")


def test_idle_ranks_hear_of_each_other_without_a_round_of_the_model(two_ranks):
    """Else a collective would run into its time limit."""
    _, _, calls, _, beats = two_ranks
    wait_until(lambda: len(beats) > 5)
    assert set(beats) == {Orders()} and calls == [[], []]


def test_several_copies_of_the_model_are_refused(monkeypatch):
    from nvlm_train.config.compose import compose
    runs = compose(["recipe=nvlm_d_tiny"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes hold 2 copies .* start 1, or set layout.tensor=2"):
        refuse_copies(runs)
    refuse_copies(compose(["recipe=nvlm_d_tiny", "layout.tensor=2"]))
