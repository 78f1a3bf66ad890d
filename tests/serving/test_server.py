"""The server around a generator whose answers are known: answers, streams, limits, clients that leave, models that fail."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from serving_toys import ENCODER, LIMITS, TOKENIZER, Scripted, png, served, shown, user, wait_until

TEXT = "A red square, 12 €."


@pytest.fixture(scope="module")
def server():
    with served(Scripted(lambda request: TEXT), LIMITS) as up:
        yield up


def text_of(events):
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1] if event["choices"])


def test_an_answer_whole(server):
    status, answer, headers = server.ask(user("What is it?", model="toy", temperature=None, user="somebody", metadata={"a": "b"}))
    assert status == 200
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert (choice["finish_reason"], answer["object"], answer["model"]) == ("stop", "chat.completion", "toy")
    prompt, written = server.generator.seen[-1].prompt.length, len(TOKENIZER.encode(TEXT))
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    assert set(answer["nvlm"]["seconds"]) == {"prepare", "wait", "read", "write"}
    assert min(answer["nvlm"]["seconds"].values()) >= 0 and answer["nvlm"]["seconds"]["read"] == 0.001
    assert "pictures" not in answer["nvlm"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_stream_says_the_same_piece_by_piece(server):
    events = server.events(user("What is it?", stream_options={"include_usage": True}))
    assert events[-1] == "[DONE]"
    assert text_of(events) == TEXT
    assert len([event for event in events[:-1] if event["choices"] and event["choices"][0]["delta"].get("content")]) > 5
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["choices"][0]["finish_reason"] for event in events[:-2]] == [None] * (len(events) - 3) + ["stop"]
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == len(TOKENIZER.encode(TEXT))
    assert len({event["id"] for event in events[:-1]}) == 1
    assert "usage" not in server.events(user("What is it?"))[-2]


def test_the_longest_answer_is_kept_to(server):
    events = server.events(user("What is it?", max_tokens=3))
    assert text_of(events) == TOKENIZER.decode(TOKENIZER.encode(TEXT)[:3])
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-2]["nvlm"]["completion_tokens"] == 3


def test_without_a_length_the_answer_may_take_what_the_prompt_leaves(server):
    server.ask(user("What is it?"))
    assert server.generator.seen[-1].sampling.max_new_tokens == LIMITS.max_new_tokens
    assert server.ask(user("word " * 370))[0] == 200
    request = server.generator.seen[-1]
    assert request.sampling.max_new_tokens == ENCODER.max_tokens - request.prompt.length < LIMITS.max_new_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_answer_and_free_its_place(server, stream):
    """The comma stands within the text, and the generator is told that nobody listens."""
    body = user("What is it?", stop=["square", ", 1"])
    text = text_of(server.events(body)) if stream else server.ask(body)[1]["choices"][0]["message"]["content"]
    assert text == "A red "
    wait_until(lambda: server.generator.seen[-1].id in server.generator.cancelled)


def test_sampling_reaches_the_generator(server):
    server.ask(user("?", temperature=0.5, top_p=0.9, seed=7, max_completion_tokens=9))
    sampling = server.generator.seen[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_new_tokens) == (0.5, 0.9, 7, 9)
    seeds = {server.ask(user("?", temperature=1))[1]["nvlm"]["seed"] for _ in range(3)}
    assert len(seeds) == 3 and server.generator.seen[-1].sampling.seed in seeds


def test_tiles_are_shown_if_they_are_wanted(server):
    body = user([shown(png(96, 64)), {"type": "text", "text": "What?"}])
    events = server.events({**body, "nvlm": {"tiles": True}})
    [picture] = events[0]["nvlm"]["pictures"]
    assert (picture["width"], picture["height"], picture["columns"], picture["rows"]) == (96, 64, 3, 2)
    assert [tile["tag"] for tile in picture["tiles"]] == [*(f"<tile_{number}>" for number in range(1, 7)), "<tile_global_thumbnail>"]
    assert [(tile.get("column"), tile.get("row")) for tile in picture["tiles"]][3:] == [(0, 1), (1, 1), (2, 1), (None, None)]
    assert all(tile["image"].startswith("data:image/png;base64,") for tile in picture["tiles"])
    assert events[-2]["nvlm"]["tiles"] == 7 == len(server.generator.seen[-1].prompt.tiles)
    assert "nvlm" not in server.events(body)[0]


def test_models_health_and_metrics(server):
    [model] = json.loads(server.get("/v1/models")[1])["data"]
    assert model["id"] == "toy" and model["nvlm"]["max_tokens"] == 480
    assert server.get("/health")[0] == 200
    before = server.house.counters.written_tokens
    server.ask(user("?"))
    metrics = server.get("/metrics")[1].decode()
    assert f'nvlm_tokens_total{{kind="answer"}} {before + len(TOKENIZER.encode(TEXT))}' in metrics
    assert "nvlm_requests_in_flight 0" in metrics and 'nvlm_requests_total{status="200"}' in metrics


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/", 405),
                                                         ("GET", "/v1/chat/completions", 405)])
def test_what_is_not_there_is_said_in_the_same_form(server, method, path, status):
    connection = server.connection(10)
    connection.request(method, path)
    response = connection.getresponse()
    assert response.status == status and "error" in json.loads(response.read())
    connection.close()


def test_a_key_is_wanted_of_everything_but_the_page():
    with served(Scripted(lambda request: "yes"), LIMITS, key="sesame-open") as up:
        for headers in ({}, {"Authorization": "Bearer sesame"}, {"Authorization": "Basic sesame-open"}, {"Authorization": "Bearer \xff"}):
            assert up.ask(user("?"), **headers)[0] == 401
            assert up.get("/v1/models", **headers)[0] == up.get("/metrics", **headers)[0] == 401
        assert up.ask(user("?"), Authorization="Bearer sesame-open")[0] == 200
        assert up.get("/")[0] == up.get("/health")[0] == 200
        assert len(up.generator.seen) == 1


def test_one_request_too_many_is_sent_away_and_the_others_are_answered():
    generator = Scripted(lambda request: "yes", slots=4)
    generator.gate.clear()
    with served(generator, LIMITS) as up, ThreadPoolExecutor(8) as threads:
        room = LIMITS.slots + LIMITS.max_waiting
        asked = [threads.submit(up.ask, user(f"number {n}")) for n in range(room)]
        wait_until(lambda: len(generator.seen) == room)
        status, answer, headers = up.ask(user("one more"))
        assert status == 429 and headers["Retry-After"] == "1"
        assert answer["error"]["type"] == "rate_limit_error"
        generator.gate.set()
        assert [each.result(20)[0] for each in asked] == [200] * room
        assert up.ask(user("again"))[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_forgotten_by_the_generator(stream):
    generator = Scripted(lambda request: "yes " * 50, pause_s=0.02)
    with served(generator, LIMITS) as up:
        connection = up.connection(20)
        connection.request("POST", "/v1/chat/completions", json.dumps(user("?", stream=stream)), {"Content-Type": "application/json"})
        wait_until(lambda: generator.busy)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        wait_until(lambda: generator.cancelled == [generator.seen[0].id])
        wait_until(lambda: up.house.counters.in_flight == 0 and not generator.busy)
        assert up.house.counters.answers == {499: 1}


def test_an_answer_that_takes_too_long_is_ended():
    generator = Scripted(lambda request: "yes")
    generator.gate.clear()
    with served(generator, replace(LIMITS, timeout_s=0.3)) as up:
        status, answer, _ = up.ask(user("?"))
        assert status == 504 and answer["error"]["code"] == "timeout"
        events = up.events(user("?"))
        assert events[-1]["error"]["code"] == "timeout", "a stream that was not finished must not end with [DONE]"
        wait_until(lambda: len(generator.cancelled) == 2)


def test_a_body_that_never_comes_gives_its_place_back():
    with served(Scripted(lambda request: "yes"), replace(LIMITS, timeout_s=0.3)) as up:
        connection = up.connection(20)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        assert connection.getresponse().status == 504
        assert up.house.counters.in_flight == 0
        connection.close()


def test_one_large_picture_holds_up_nobody_else(monkeypatch):
    """The first question's pictures are being decoded until the second is answered."""
    from nvlm_train.serving import completions
    second, prepare = threading.Event(), completions.prepare

    def slow(asked, *rest):
        if "large" in asked.messages[0].parts:
            assert second.wait(10)
        return prepare(asked, *rest)

    monkeypatch.setattr(completions, "prepare", slow)
    with served(Scripted(lambda request: "yes"), LIMITS) as up, ThreadPoolExecutor(1) as threads:
        first = threads.submit(up.ask, user("large"))
        assert up.ask(user("small"))[0] == 200
        assert not first.done()
        second.set()
        assert first.result(20)[0] == 200


def test_a_model_that_fails_leaves_nobody_waiting():
    def fail(request):
        raise RuntimeError("out of memory, said the toy")

    generator = Scripted(lambda request: "yes")
    generator.gate.clear()
    with served(generator, LIMITS) as up, ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(up.ask, user(f"number {n}")) for n in range(3)]
        wait_until(lambda: len(generator.seen) == 3)
        generator.script = fail
        generator.gate.set()
        for status, answer, _ in (each.result(20) for each in asked):
            assert status == 500 and answer["error"]["type"] == "server_error"
            assert "toy" not in answer["error"]["message"], "what failed is for the log"
        assert up.ask(user("later"))[0] == 500
        assert [str(problem) for problem in up.ended] == ["out of memory, said the toy"]


def test_while_going_down_new_requests_are_sent_away_and_old_ones_finished():
    generator = Scripted(lambda request: "yes")
    generator.gate.clear()
    with served(generator, LIMITS) as up, ThreadPoolExecutor(1) as threads:
        old = threads.submit(up.ask, user("old"))
        wait_until(lambda: generator.seen)
        up.house.closing = True
        status, answer, headers = up.ask(user("new"))
        assert (status, answer["error"]["code"], headers["Retry-After"]) == (503, "server_stopping", "5")
        assert up.get("/health")[0] == 503
        generator.gate.set()
        assert old.result(20)[0] == 200
