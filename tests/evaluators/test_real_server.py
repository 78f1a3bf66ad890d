"""The evaluators' client against the real server, whose model says what a script wants."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from nvlm_evaluators.client import Client, ServerError, Settings, picture, text

pytest.importorskip("aiohttp", reason="nvlm serve takes aiohttp")

from tests.serving.serving_toys import LIMITS, Scripted, png, served

KEY = "sesame-open"


@pytest.fixture(scope="module")
def server():
    """It says how many tiles it sees; a third of a second for every answer, so that many at once must wait."""
    with served(Scripted(lambda request: f"{len(request.prompt.tiles)} tiles. Or so", pause_s=0.02), LIMITS, key=KEY) as up:
        yield up


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("NVLM_API_KEY", KEY)
    return Client(f"{server.url}/v1", patience_s=60)


def asked(*pictures: bytes, words: str = "How many?") -> list[dict]:
    return [{"role": "user", "content": [*map(picture, pictures), text(words)]}]


def test_pictures_text_and_stops_arrive(client, server):
    assert client.model == "toy"
    answer = client.answer(asked(png(64, 32), png(32, 32)), Settings(20, stop=(".",)))
    assert answer.text == "4 tiles" and answer.new_tokens >= 2      # two and a thumbnail, one
    request = server.generator.seen[-1]
    assert request.prompt.length == answer.prompt_tokens and request.sampling.max_new_tokens == 20 and request.sampling.temperature == 0.0
    assert client.answer(asked(words="Nothing to see <image>"), Settings(20, 0.7, 0.9, 5)).text == "0 tiles. Or so"
    assert (server.generator.seen[-1].sampling.temperature, server.generator.seen[-1].sampling.seed) == (0.7, 5)


def test_more_questions_than_the_server_takes_are_all_answered(client):
    """Four run and four wait there; twenty are asked, and those sent away come back."""
    began = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: client.answer(asked(png(32, 32 * (1 + number % 2))), Settings(20)), range(20)))
    assert [answer.text for answer in answers] == [f"{1 + 2 * (number % 2)} tiles. Or so" for number in range(20)]
    assert time.monotonic() - began < 40


def test_what_it_refuses_of_a_question_is_a_reason(client):
    for messages, told in ((asked(png(2000, 1000)), "1,000,000"), (asked(*[png()] * 4), "serve.max_images"),
                           (asked(words="word " * 2000), "tokens")):
        answer = client.answer(messages, Settings(20))
        assert answer.text == "" and told in answer.refused


@pytest.mark.parametrize("settings", [Settings(101), Settings(20, temperature=9.0), Settings(20, 0.5, top_p=2.0), Settings(20, stop=("x" * 4000,))])
def test_settings_that_it_refuses_end_the_evaluation(client, settings):
    with pytest.raises(ServerError, match="does not do"):
        client.answer(asked(), settings)


def test_a_wrong_key_is_said(server, monkeypatch):
    monkeypatch.setenv("NVLM_API_KEY", "open-sesame")
    with pytest.raises(ServerError, match=r"names 0 models \(no key, or not this server's"):
        Client(f"{server.url}/v1")
    with pytest.raises(ServerError, match=r"wants another key than \$NVLM_API_KEY has"):
        Client(f"{server.url}/v1", "toy").answer(asked(), Settings(4))
