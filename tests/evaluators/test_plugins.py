"""The models that lmms-eval and VLMEvalKit get, around their own base classes where the packages are (else stand-ins), and a stub server."""

import base64
import importlib
import io
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import harnesses
import pytest
from PIL import Image
from stub_server import refusal, said, serving

from tests.evaluation.references import reference_file

PLUGINS = ("nvlm_evaluators.lmms", "nvlm_evaluators.manifest", "nvlm_evaluators.vlmevalkit")


@pytest.fixture
def stub():
    with serving() as server:
        yield server


@pytest.fixture(params=harnesses.SETS)
def imported(request, monkeypatch):
    """Imports a module of ours among the modules of a harness; afterwards both are forgotten."""
    before = set(sys.modules)

    def do(harness: str, *names: str):
        getattr(harnesses, harness)(request.param, monkeypatch)
        return [importlib.import_module(f"nvlm_evaluators.{name}") for name in names]

    yield do
    for name in set(sys.modules) - before:
        if name in PLUGINS or name.startswith(("lmms_eval.", "vlmeval.")):
            del sys.modules[name]


def message(words, *pictures):
    shown = [{"type": "image", "url": picture} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": words}]}]


def request_of(number, wanted=None):
    """As lmms-eval gives one to a chat model: context, messages of a document, settings, its number, task, split."""
    return SimpleNamespace(args=("", lambda doc: message(doc["question"], doc["image"]), wanted or {}, number, "quiz", "test"))


def lmms_model(imported, stub, docs, words=""):
    module, = imported("lmms_eval", "lmms")
    model = module.Nvlm.create_from_arg_string(f"base_url={stub.url},at_once=3{words}", {"batch_size": 1, "device": None})
    model.task_dict = {"quiz": {"test": docs}}
    return module, model


def documents(count):
    return [{"question": f"Number {number}?", "image": Image.new("RGB", (8, 8 + number), "blue")} for number in range(count)]


def question(body):
    return body["messages"][0]["content"][-1]["text"]


def test_lmms_eval_finds_the_model(imported, stub):
    manifest, module = imported("lmms_eval", "manifest", "lmms")
    assert manifest.MANIFEST.model_id == "nvlm" and manifest.MANIFEST.chat_class_path == f"{module.__name__}.Nvlm"
    assert module.Nvlm.is_simple is False and issubclass(module.Nvlm, sys.modules["lmms_eval.api.model"].lmms)
    registry = sys.modules["lmms_eval.models.registry_v2"]
    if hasattr(registry, "ModelRegistryV2"):
        made = registry.ModelRegistryV2()
        made.register_manifest(manifest.MANIFEST)
        assert made.get_model_class("nvlm") is module.Nvlm
    project = tomllib.loads((Path(module.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"nvlm": "nvlm_evaluators.manifest:MANIFEST"}


def test_answers_come_in_the_order_of_the_questions(imported, stub):
    stub.answer = lambda body: said(f"{question(body)} Yes. Next", prompt_tokens=9, completion_tokens=2)
    _, model = lmms_model(imported, stub, documents(7))
    wanted = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["Next"], "image_aspect_ratio": "pad"}
    results = model.generate_until([request_of(number, wanted) for number in range(7)])
    assert [result.text for result in results] == [f"Number {number}? Yes. " for number in range(7)]
    assert (results[0].token_counts.input_tokens, results[0].token_counts.output_tokens) == (9, 2)
    body = next(body for body in stub.bodies if question(body) == "Number 4?")
    assert (body["max_tokens"], body["temperature"], body["stop"], body["model"]) == (16, 0.0, ["Next"], "tiny")
    shown = body["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))) as image:
        assert image.size == (8, 12)


def test_refused_questions_are_answered_with_nothing_and_said(imported, stub, caplog):
    stub.answer = lambda body: refusal(400, "too large") if question(body) == "Number 1?" else said("yes")
    _, model = lmms_model(imported, stub, documents(3), ",max_new_tokens=5")
    assert [result.text for result in model.generate_until([request_of(number) for number in range(3)])] == ["yes", "", "yes"]
    assert "1 of 3 questions were refused" in caplog.text and "too large" in caplog.text
    assert {body["max_tokens"] for body in stub.bodies} == {5}
    with pytest.raises(ValueError, match="all 1 questions were refused, the first because: too large"):
        model.generate_until([request_of(1)])


def test_a_server_that_fails_ends_the_evaluation(imported, stub):
    stub.answer = lambda body: refusal(500, "broken")
    _, model = lmms_model(imported, stub, documents(2))
    with pytest.raises(RuntimeError, match="fails with status 500: broken"):
        model.generate_until([request_of(0), request_of(1)])


def test_what_cannot_be_served_is_refused(imported, stub):
    module, model = lmms_model(imported, stub, documents(1))
    for wanted in ({"num_beams": 5}, {"temperature": 0.7, "top_k": 3}, {"repetition_penalty": 1.2}):
        with pytest.raises(ValueError, match="does not do"):
            model.generate_until([request_of(0, wanted)])
    assert module.settings_of({"temperature": 0.7, "do_sample": False, "top_k": 1, "top_p": None}).temperature == 0.0
    assert module.settings_of({"temperature": 0.7, "top_p": 0.9, "until": "\n"}) == module.Settings(1024, 0.7, 0.9, None, ("\n",))
    assert module.settings_of({"until": ["", "Q:", "\n\n"]}).stop == ("Q:", "\n\n") and module.settings_of({"until": ["\n\n"]}).stop == ()
    with pytest.raises(NotImplementedError, match="likelihoods"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])
    model.task_dict["quiz"]["test"] = [None]
    films = SimpleNamespace(args=("", lambda doc: [{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}], {}, 0, "quiz", "test"))
    with pytest.raises(ValueError, match="shows video"):
        model.generate_until([films])
    assert stub.bodies == []


def vlm_model(imported, stub, **more):
    module, = imported("vlmeval", "vlmevalkit")
    return module, module.Nvlm(base_url=stub.url, **more)


def test_vlmevalkit_asks_with_every_picture_in_its_place(imported, stub, tmp_path):
    stub.answer = lambda body: said(" B. \n")
    module, model = vlm_model(imported, stub)
    assert issubclass(module.Nvlm, sys.modules["vlmeval.vlm.base"].BaseModel)
    for name in ("a", "b"):
        Image.new("RGB", (6, 4), "red").save(tmp_path / f"{name}.png")
    parts = [{"type": "image", "value": str(tmp_path / "a.png")}, {"type": "text", "value": "and"},
             {"type": "image", "value": str(tmp_path / "b.png")}, {"type": "text", "value": "Which?"}]
    assert model.generate(parts, dataset="MMBench") == "B."
    [body] = stub.bodies
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text", "image_url", "text"]
    assert (body["max_tokens"], body["temperature"]) == (1024, 0.0)
    assert model.is_api      # the toolkit then asks several questions at a time


def test_vlmevalkit_counts_refused_questions_as_failed(imported, stub):
    stub.answer = lambda body: refusal(400, "too long")
    module, model = vlm_model(imported, stub)
    assert model.generate([{"type": "text", "value": "What?"}], dataset="X") == f"{module.FAILED} too long"


def test_the_stop_that_no_task_asked_for_is_lmms_evals():
    source = reference_file("lmms_eval/api/task.py").read_text()
    assert 'fewshot_delimiter: str = "\\n\\n"' in source and 'self.generation_kwargs["until"] = [self.fewshot_delimiter]' in source


@pytest.mark.parametrize("file", ["vlmeval/inference.py", "vlmeval/api/base.py"])
def test_the_toolkits_word_for_failed(imported, stub, file):
    source = reference_file(file).read_text()
    module, _ = vlm_model(imported, stub)
    assert f"'{module.FAILED}'" in source


def test_mmmu_is_asked_as_nvlms_public_code_does(imported, stub, tmp_path):
    _, model = vlm_model(imported, stub)
    model.set_dump_image(lambda line: ["1.png", "2.png"])
    assert [name for name in ("MMMU_DEV_VAL", "MMMU_TEST", "MMMU_Pro_10c", "MMBench", "AI2D_TEST", None) if model.use_custom_prompt(name)] == [
        "MMMU_DEV_VAL", "MMMU_TEST"]
    line = {"question": "Which looks like <image 2>?", "A": "<image 1>", "B": "none", "C": float("nan")}
    assert model.build_prompt(line, "MMMU_DEV_VAL") == [
        {"type": "text", "value": "<image 1>"}, {"type": "image", "value": "1.png"}, {"type": "text", "value": " <image 2>"},
        {"type": "image", "value": "2.png"}, {"type": "text", "value": "\nWhich looks like <image 2>?\nA. <image 1>\nB. none\nAnswer with the "
                                              "option's letter from the given choices directly."}]
    model.set_dump_image(lambda line: "1.png")
    assert model.build_prompt({"question": "How many?"}, "MMMU_DEV_VAL")[-1]["value"] == "\nHow many?\nAnswer the question directly."
