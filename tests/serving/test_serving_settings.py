"""serve.… and chat.… on the command line."""

import re
import socket
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import nvlm_train
from nvlm_train.config.serving import Chat, Serve, take_chat, take_serve
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.serving.chat import chat_command
from nvlm_train.serving.command import read_key, serve_command


def test_settings_of_the_server_and_of_the_run_are_told_apart():
    spoken, rest = take_serve(["checkpoint=runs/x", "serve.port=0", "layout.tensor=2", "serve.timeout_s=2.5", "serve.name=7",
                               "run.device=cpu"])
    assert spoken.checkpoint == "runs/x" and rest == ["layout.tensor=2", "run.device=cpu"]
    assert spoken.serve == Serve(port=0, timeout_s=2.5, name="7")
    assert take_chat(["checkpoint=x", "chat.temperature=1", "chat.system=a=b"])[0].chat == Chat(temperature=1.0, system="a=b")


@pytest.mark.parametrize(("words", "said"), [
    (["serve.prot=1"], r"serve.prot: unknown key; did you mean serve.port\?"),
    (["serve.port=web"], "expected a whole number, got 'web'"),
    (["serve.timeout_s=soon"], "expected a number"),
    (["serve.slots=0"], "serve.slots=0 must be at least 1"),
    (["serve.timeout_s=nan"], "serve.timeout_s=nan must be at least"),
    (["serve.port=70000"], "at most 65535"),
    (["serve.max_prompt_tokens=0"], "at least 1"),
])
def test_what_cannot_be_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        take_serve(["checkpoint=x", *words])


def test_every_problem_is_told_and_a_checkpoint_is_wanted():
    with pytest.raises(ConfigError) as refused:
        take_serve(["serve.prot=1", "serve.slots=x"])
    assert len(refused.value.problems) == 2
    for take in (take_serve, take_chat):
        with pytest.raises(ConfigError, match="no checkpoint given"):
            take([])
    with pytest.raises(ConfigError, match="did you mean chat.top_p"):
        take_chat(["checkpoint=x", "chat.topp=1"])


def test_a_key_comes_from_a_file_or_the_environment(tmp_path):
    (tmp_path / "key").write_text("  sesame-open\n")
    (tmp_path / "empty").write_text("\n")
    assert read_key(str(tmp_path / "key"), "other") == "sesame-open"
    assert read_key(None, "other") == "other"
    assert read_key(None, None) is None and read_key(None, "") is None
    for name, said in (("empty", "is empty"), ("nowhere", "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            read_key(str(tmp_path / name), "other")


def test_a_port_that_is_taken_is_said_before_anything_is_loaded():
    from nvlm_train.config.compose import compose
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen there"):
        serve_command(compose(["recipe=nvlm_d_tiny"]), "there is none", Serve(port=taken.getsockname()[1]))


def test_sampling_that_cannot_be_is_said_before_anything_is_loaded():
    from nvlm_train.config.compose import compose
    with pytest.raises(DataError, match="temperature is -1"):
        chat_command(compose(["recipe=nvlm_d_tiny"]), "there is none", Chat(temperature=-1.0))


def test_every_setting_is_documented_with_its_default():
    text = (Path(nvlm_train.__file__).resolve().parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:serve|chat)\.\w+)` \| (.*?) \|", text, re.MULTILINE)
    documented = {key: yaml.safe_load(value) for key, value in rows}
    assert documented == {f"{group}.{each.name}": each.default for group, settings in (("serve", Serve), ("chat", Chat))
                          for each in fields(settings)}
    assert len(rows) == 18
