"""`nvlm generate` around an engine whose answers are known."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import LookupEngine
from test_tasks import ENCODER, MODEL, TOKENIZER, always, picture

from nvlm_train.config.request import Draw, take_request
from nvlm_train.config.schema import Data, Run
from nvlm_train.contracts import Sample, Turn
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation import generate_command
from nvlm_train.evaluation.opening import Model
from nvlm_train.generation.request import Sampling

OPTIONS = {"checkpoint": "runs/x", "max_new_tokens": 4, "json": False, "image": [], "prompt": None, "temperature": 0.0, "top_p": 1.0, "seed": 0}
RUN = Run(recipe="test", stage="sft", model=MODEL, data=Data())


@pytest.fixture
def opened(monkeypatch):
    model = Model(RUN, always("no"), ENCODER, Path("step-00000007"), SimpleNamespace(stage="sft", step=7))
    monkeypatch.setattr(generate_command, "open_model", lambda runs, checkpoint: model)
    return model


def test_generate_answers_about_pictures(opened, capsys, tmp_path):
    file = tmp_path / "red.png"
    file.write_bytes(picture(64, 32))
    generate_command.generate_command([opened.run], {**OPTIONS, "image": [str(file)], "prompt": "Is it blue?"})
    assert capsys.readouterr().out == "no\n"
    assert len(opened.engine.rows[0].tiles_nCPP) == 3
    assert "Is it blue?" in ENCODER.tokenizer.decode(opened.engine.rows[0].tokens_T)


def test_generate_without_pictures_as_json(opened, capsys):
    generate_command.generate_command([opened.run], {**OPTIONS, "prompt": "Calculate 1 + 1.", "json": True})
    assert json.loads(capsys.readouterr().out) == {
        "checkpoint": str(opened.checkpoint), "images": [], "prompt": "Calculate 1 + 1.", "answer": "no"}


def test_generate_refuses_what_cannot_be_asked(opened, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="cannot be put: broken_image"):
        generate_command.generate_command([opened.run], {**OPTIONS, "image": [str(broken)], "prompt": "What?"})


def test_only_the_main_rank_prints(opened, capsys):
    opened.engine.is_main = False
    generate_command.generate_command([opened.run], {**OPTIONS, "prompt": "Hello?"})
    assert capsys.readouterr().out == ""


def test_the_answer_comes_in_pieces_that_are_whole_characters(opened):
    text = "It\u2019s 7 \u2260 8."       # some characters are several tokens of this tokenizer
    opened = Model(RUN, always(text), ENCODER, opened.checkpoint, opened.manifest)
    prompt = ENCODER.encode_prompt(Sample("q", "q", (), (Turn("user", "What?"), Turn("assistant", ""))), reserve=30)
    pieces = list(generate_command.written(opened, prompt, Sampling(30)))
    assert "".join(pieces) == text and len(pieces) > 5 and not any("\ufffd" in piece for piece in pieces)
    assert max(map(len, pieces)) < len(text) and len(TOKENIZER.encode("\u2260")) > 1


def test_a_replica_that_is_not_asked_goes_along_and_says_nothing(opened):
    """As on the second of two replicas: it takes part in every round that the first needs."""
    rounds = iter([True, True, False, True, False, True, False])     # another? prompts? new tokens? another? …
    opened = replace(opened, engine=LookupEngine(lambda tokens: 0))
    opened.engine.data_size, opened.engine.data_rank = 2, 1
    opened.engine.any_rank = lambda flag: next(rounds)
    prompt = ENCODER.encode_prompt(Sample("q", "q", (), (Turn("user", "What?"), Turn("assistant", ""))), reserve=30)
    assert list(generate_command.written(opened, prompt, Sampling(4))) == [""]
    assert len(opened.engine.rows) == 2 and not any(row.keys for row in opened.engine.rows)


def test_what_draws_an_answer_is_read_from_words():
    request, rest = take_request(["generate.temperature=0.7", "generate.top_p=0.9", "generate.seed=3", "checkpoint=x", "layout.tensor=2"])
    assert request.generate == Draw(0.7, 0.9, 3) and rest == ["layout.tensor=2"]
    with pytest.raises(ConfigError, match="generate.temprature.*generate.temperature"):
        take_request(["generate.temprature=1"])
    with pytest.raises(ConfigError, match="whole number"):
        take_request(["generate.seed=0.5"])
