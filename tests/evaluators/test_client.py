"""The evaluators' client: what it sends, when it asks again, and what it makes of answers, refusals and failures."""

import ast
import base64
import io
import json
import sys
from pathlib import Path

import pytest
from nvlm_evaluators import client as module
from nvlm_evaluators.client import Client, ServerError, Settings, picture, text
from PIL import Image
from stub_server import refusal, said, serving

USER = [{"role": "user", "content": [text("What?")]}]
FOUR = Settings(4)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.delenv("NVLM_API_KEY", raising=False)
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    with serving() as server:
        server.waits = waits
        yield server


def test_what_is_sent_and_what_comes_back(stub, monkeypatch):
    monkeypatch.setenv("NVLM_API_KEY", "secret")
    answer = Client(stub.url).answer(USER, Settings(4, 0.5, 0.9, 3, ("a", "b", "c", "d", "e")))
    assert (answer.text, answer.prompt_tokens, answer.new_tokens, answer.refused) == ("y", 7, 1, None)     # cut at "e", the fifth stop
    [(path, headers, body)] = stub.asked
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert body == {"model": "tiny", "messages": USER, "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 3,
                    "stop": ["a", "b", "c", "d"]}


def test_without_a_key_none_is_sent(stub):
    Client(stub.url, "other").answer(USER, FOUR)
    [(_, headers, body)] = stub.asked
    assert "Authorization" not in headers and body["model"] == "other" and not {"seed", "stop"} & body.keys()


def test_several_models_must_be_chosen_from(stub):
    stub.models = ["one", "two"]
    with pytest.raises(ServerError, match=r"names 2 models \(one, two\)"):
        Client(stub.url)


def test_a_server_that_is_full_is_asked_again_when_it_says(stub):
    replies = [refusal(429, "full", **{"Retry-After": "3"}), refusal(503, "starting"), said("late")]
    stub.answer = lambda body: replies.pop(0)
    assert Client(stub.url).answer(USER, FOUR).text == "late"
    assert stub.waits == [3.0, 6.0] and len(stub.asked) == 3


def test_patience_ends(stub):
    stub.answer = lambda body: refusal(429, "full")
    with pytest.raises(ServerError, match=r"has not answered for 0.1 s: status 429: full"):
        Client(stub.url, "tiny", patience_s=0.1).answer(USER, FOUR)
    with pytest.raises(ServerError, match=r"URLError.*Is `nvlm serve` running"):
        Client("http://127.0.0.1:9/v1", patience_s=0.1)


def test_a_refused_question_is_an_answer_with_a_reason(stub):
    stub.answer = lambda body: refusal(400, "a picture of 9,000 x 9,000 pixels")
    assert Client(stub.url).answer(USER, FOUR).refused == "a picture of 9,000 x 9,000 pixels" and len(stub.asked) == 1


def test_settings_that_every_question_would_be_refused_for_are_raised(stub):
    stub.answer = lambda body: (400, {"error": {"message": "at most 2 tokens", "param": "max_tokens"}}, {})
    with pytest.raises(ServerError, match="does not do max_tokens=4: at most 2 tokens"):
        Client(stub.url).answer(USER, FOUR)
    stub.answer = lambda body: (400, {"error": {"message": "too large", "param": "messages"}}, {})
    assert Client(stub.url).answer(USER, FOUR).refused == "too large"


@pytest.mark.parametrize(("reply", "told"), [
    (refusal(500, "out of memory"), "fails with status 500: out of memory"), (refusal(401, "no"), "wants another key"),
    (refusal(404, "no"), "has no model 'tiny'"), ((200, {"choices": []}, {}), "does not answer as chat completions do"),
    ((200, b"<html>", {}), "does not answer as"), ((200, {"choices": [{"message": {"content": None}}]}, {}), "content is a NoneType"),
    ((302, b"", {"Location": "http://127.0.0.1:9/"}), "with status 302, which no chat")])
def test_what_is_the_servers_fault_is_raised_at_once(stub, reply, told):
    stub.answer = lambda body: reply
    with pytest.raises(ServerError, match=told):
        Client(stub.url).answer(USER, FOUR)
    assert len(stub.asked) == 1


def test_pictures_travel_as_they_are_or_as_png(tmp_path):
    image = Image.new("RGB", (5, 3), "red")
    for kind in ("png", "jpeg", "webp"):
        image.save(tmp_path / f"x.{kind}", kind)
        data = (tmp_path / f"x.{kind}").read_bytes()
        for given in (data, tmp_path / f"x.{kind}", str(tmp_path / f"x.{kind}")):
            assert picture(given) == {"type": "image_url", "image_url": {
                "url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}
    image.convert("CMYK").save(tmp_path / "x.tiff")
    image.save(tmp_path / "x.bmp")
    for given in (image, image.convert("CMYK"), tmp_path / "x.tiff", tmp_path / "x.bmp"):
        head, _, data = picture(given)["image_url"]["url"].partition(",")
        with Image.open(io.BytesIO(base64.b64decode(data))) as back:
            assert head == "data:image/png;base64" and back.size == (5, 3) and back.convert("RGB").getpixel((2, 1)) == (255, 0, 0)
    with pytest.raises(OSError):
        picture(b"no picture")
    with pytest.raises(OSError):
        picture(tmp_path / "none.png")


def test_the_client_needs_nothing_but_python():
    """Pillow alone, and only for pictures that must become PNG: every evaluator has it."""
    tree = ast.parse(Path(module.__file__).read_text())
    imports = {name.split(".")[0] for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
               for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])}
    assert imports - set(sys.stdlib_module_names) == {"PIL"}
    assert json.dumps(picture(b"\xff\xd8\xff"))
