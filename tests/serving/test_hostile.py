"""What is oversized, broken or hostile is refused with a 4xx that says why, and the server goes on."""

import io
import json
import struct
import zlib
from dataclasses import replace

import pytest
from PIL import Image
from serving_toys import LIMITS, Scripted, address, png, served, shown, user


@pytest.fixture(scope="module")
def server():
    with served(Scripted(lambda request: "fine"), LIMITS) as up:
        yield up


def huge_png(width: int, height: int) -> bytes:
    """The header of a picture, and next to nothing behind it."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def gif() -> bytes:
    out = io.BytesIO()
    Image.new("P", (4, 4)).save(out, "GIF")
    return out.getvalue()


def about(url, **more):
    return user([{"type": "image_url", "image_url": {"url": url, **more}}, {"type": "text", "text": "What?"}])


RED = png()
PICTURES = {
    "an address to fetch": (about("https://example.com/cat.png"), "fetches nothing"),
    "a file": (about("file:///etc/passwd"), "fetches nothing"),
    "a plain path": (about("/etc/passwd"), "fetches nothing"),
    "no address": (about(7), "must be"),
    "not base64": (about("data:image/png;base64,@@@@"), "not base64"),
    "base64 cut off": (about(address(RED)[:-3]), "not base64"),
    "not base64 by its own word": (about("data:image/png,AAAA"), "base64"),
    "an empty picture": (about("data:image/png;base64,"), "starts with"),
    "text for a picture": (about("data:text/html;base64,PGI+"), "image/png"),
    "a drawing with scripts": (about("data:image/svg+xml;base64,PHN2Zz4="), "image/png"),
    "a GIF": (about(address(gif(), "image/gif")), "image/png"),
    "a GIF that says it is a PNG": (about(address(gif())), "no image/png"),
    "a PNG that says it is a JPEG": (about(address(RED, "image/jpeg")), "no image/jpeg"),
    "a sound that says it is a WebP": (about(address(b"RIFF\x24\x00\x00\x00WAVEfmt ", "image/webp")), "broken_image"),
    "a cut PNG": (about(address(png(300, 300)[:200])), "broken_image"),
    "a damaged JPEG": (about(address(png(64, 64, kind="JPEG")[:200], "image/jpeg")), "broken_image"),
    "noise behind a PNG's first bytes": (about(address(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))), "broken_image"),
    "a bomb": (about(address(huge_png(30_000, 30_000))), "image_too_large"),
    "more pixels than this server takes": (about(address(huge_png(1001, 1000))), "1,001,000 pixels"),
    "no pixels": (about(address(huge_png(0, 5))), "broken_image"),
    "too many pictures": (user([shown(RED)] * 4), "serve.max_images"),
    "too many pictures over several messages": ({"messages": [{"role": "user", "content": [shown(RED)] * 2}] * 2}, "serve.max_images"),
    "a picture by the assistant": ({"messages": [{"role": "assistant", "content": [shown(RED)]}, *user("?")["messages"]]}, "only a user"),
    "a word for detail": (about(address(RED), detail="tiny"), "detail"),
}
MESSAGES = {
    "no messages": ({}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "messages that are text": ({"messages": "hello"}, "messages"),
    "a message that is text": ({"messages": ["hello"]}, "messages[0]"),
    "no role": ({"messages": [{"content": "hello"}]}, "role"),
    "an unknown role": ({"messages": [{"role": "tool", "content": "hello"}]}, "role"),
    "a role that is a list": ({"messages": [{"role": ["user"], "content": "hello"}]}, "role"),
    "no content": ({"messages": [{"role": "user"}]}, "content"),
    "content that is a number": (user(3), "content"),
    "empty content": (user([]), "content"),
    "an unknown part": (user([{"type": "input_audio", "input_audio": {}}]), "content[0]"),
    "a part that is text": (user(["hello"]), "content[0]"),
    "a text that is none": (user([{"type": "text", "text": 5}]), "content[0]"),
    "calls of tools": ({"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "tool_calls"),
    "an assistant's last word": ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "last message"),
    "a prompt too long": (user("long " * 600), "too long"),
    "a prompt far too long to be tokenised": (user("x" * 200_000), "too long"),
    "half a surrogate pair": (user("\ud800"), "surrogate"),
    "half a surrogate pair to stop at": (user("a", stop="\udc00"), "surrogate"),
}
PARAMETERS = {
    "another model": ({"model": "gpt-4o"}, "does not exist"),
    "a model that is a list": ({"model": ["toy"]}, "does not exist"),
    "several answers": ({"n": 2}, "n must be 1"),
    "no answers": ({"n": 0}, "n must be 1"),
    "n that is a flag": ({"n": True}, "whole number"),
    "tools": ({"tools": [{"type": "function"}]}, "not supported"),
    "a format": ({"response_format": {"type": "json_object"}}, "not supported"),
    "probabilities": ({"logprobs": True}, "not supported"),
    "a penalty": ({"frequency_penalty": 0.5}, "not supported"),
    "biases": ({"logit_bias": {"5": 1}}, "not supported"),
    "top_k": ({"top_k": 5}, "not supported"),
    "a misspelt parameter": ({"temprature": 1}, "did you mean temperature"),
    "heat below nothing": ({"temperature": -0.1}, "temperature"),
    "too much heat": ({"temperature": 2.5}, "temperature"),
    "heat in words": ({"temperature": "hot"}, "a number"),
    "heat that is a flag": ({"temperature": True}, "a number"),
    "an endless number": ({"temperature": 10**400}, "temperature"),
    "top_p of nothing": ({"top_p": 0}, "top_p"),
    "top_p beyond all": ({"top_p": 1.01}, "top_p"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "too many tokens": ({"max_tokens": 101}, "serve.max_new_tokens"),
    "part of a token": ({"max_tokens": 1.5}, "whole number"),
    "two lengths": ({"max_tokens": 5, "max_completion_tokens": 6}, "differ"),
    "a seed below nothing": ({"seed": -1}, "seed"),
    "a seed too large": ({"seed": 2**63}, "seed"),
    "a seed in words": ({"seed": "1"}, "whole number"),
    "five stops": ({"stop": list("abcde")}, "at most 4"),
    "an empty stop": ({"stop": ""}, "stop"),
    "a stop that is a number": ({"stop": [1]}, "stop"),
    "a stop without end": ({"stop": "x" * 300}, "stop"),
    "stream in words": ({"stream": "yes"}, "true or false"),
    "options of no stream": ({"stream_options": {"include_usage": True}}, "stream: true"),
    "unknown options": ({"stream": True, "stream_options": {"speed": 1}}, "stream_options"),
    "an unknown extension": ({"nvlm": {"speed": 1}}, "nvlm"),
}
BODIES = {
    "nothing": (b"", "not JSON"),
    "half an object": (b'{"messages": [', "not JSON"),
    "not UTF-8": (b'{"messages": "\xff"}', "not JSON"),
    "a list": (b"[]", "JSON object"),
    "NaN": (b'{"temperature": NaN, "messages": [{"role": "user", "content": "a"}]}', "NaN is no number"),
    "infinity": (b'{"temperature": Infinity}', "no number"),
    "an infinite exponent": (b'{"temperature": 1e999, "messages": [{"role": "user", "content": "a"}]}', "temperature"),
    "a number of ten thousand digits": (b'{"seed": ' + b"9" * 10_000 + b"}", "not JSON"),
    "deep lists": (b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "too deeply"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deeply"),
    "a compressed body": (zlib.compress(json.dumps(user("hello")).encode()), "not JSON"),
}
CASES = {**PICTURES, **MESSAGES, **{name: ({**user("hello"), **more}, said) for name, (more, said) in PARAMETERS.items()}, **BODIES}


@pytest.mark.parametrize("name", CASES)
def test_refused_with_a_reason(server, name):
    body, said = CASES[name]
    before = len(server.generator.seen)
    status, answer, _ = server.ask(body)
    assert status in (400, 404)
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    assert said in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"
    assert len(answer["error"]["message"]) < 500
    assert len(server.generator.seen) == before, "the model was asked all the same"


def test_the_server_still_answers(server):
    assert server.ask(user([shown(RED), {"type": "text", "text": "What?"}]))[0] == 200
    assert server.house.counters.in_flight == 0
    assert len(CASES) > 80


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "in pieces"])
def test_a_body_too_large_is_refused_before_it_is_read(server, declared):
    connection = server.connection(20)
    body = b" " * (3 * 2**20)
    try:
        connection.request("POST", "/v1/chat/completions", body if declared else iter([body[:2**20]] * 3),
                           {"Content-Type": "application/json"}, encode_chunked=not declared)
    except (BrokenPipeError, ConnectionResetError):
        pass    # answered and closed before all was sent
    response = connection.getresponse()
    assert response.status == 413
    assert "serve.max_body_mb" in json.loads(response.read())["error"]["message"]
    connection.close()


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_foreign_page_could_send_is_refused(server, media):
    assert server.ask(user("hello"), **{"Content-Type": media})[0] == 415


def test_a_compressed_body_is_not_unpacked(server):
    bomb = zlib.compress(b" " * 50_000_000)
    status, answer, _ = server.ask(bomb, **{"Content-Encoding": "deflate"})
    assert status == 400 and "not JSON" in answer["error"]["message"]


def test_a_model_that_cannot_see_says_so():
    with served(Scripted(lambda request: "fine"), LIMITS, blind="it has no eyes") as up:
        status, answer, _ = up.ask(user([shown(RED)]))
        assert status == 400 and answer["error"]["message"] == "it has no eyes"
        assert up.ask(user("hello"))[0] == 200


def test_a_shorter_limit_on_prompts_holds():
    with served(Scripted(lambda request: "fine"), replace(LIMITS, max_prompt_tokens=40)) as up:
        assert up.ask(user("hello"))[0] == 200
        status, answer, _ = up.ask(user("one two three four five six seven eight nine ten " * 3))
        assert status == 400 and "serve.max_prompt_tokens" in answer["error"]["message"]
        assert answer["error"]["code"] == "context_length_exceeded"


