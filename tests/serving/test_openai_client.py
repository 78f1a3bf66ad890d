"""The stock client of OpenAI's API, pointed at our server and otherwise as it comes."""

import pytest
from serving_toys import LIMITS, Scripted, png, served, shown

openai = pytest.importorskip("openai")
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, shown(png(96, 64))]}]


@pytest.fixture(scope="module")
def server():
    with served(Scripted(lambda request: f"{len(request.prompt.tiles)} tiles"), LIMITS, key="sesame-open") as up:
        yield up


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame-open", max_retries=0, timeout=20) as made:
        yield made


def test_an_answer_about_a_picture(client):
    answer = client.chat.completions.create(model="toy", messages=QUESTION, temperature=0, max_tokens=20)
    assert answer.choices[0].message.content == "7 tiles"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 60
    assert answer.nvlm["tiles"] == 7


def test_a_stream_with_its_usage(client):
    stream = client.chat.completions.create(model="toy", messages=QUESTION, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "7 tiles"
    assert chunks[-1].usage.completion_tokens > 1 and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["toy"] == [client.models.retrieve("toy").id]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_refusals_are_the_client_s_own_errors(client, server):
    with pytest.raises(openai.BadRequestError, match="fetches nothing") as refused:
        client.chat.completions.create(model="toy", messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]}])
    assert refused.value.code == "url_not_supported" and refused.value.param.endswith("url")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=QUESTION)
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as other:
        other.models.list()
