"""`nvlm eval eval=NAME` around an engine whose answers are known, and `nvlm score` on files of answers."""

import json
import struct
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
from benchmark_files import WRITERS, picture, write_parquet
from test_tasks import ENCODER, MODEL, always, question

from data_prep.shards import write_shards
from nvlm_train import cli
from nvlm_train.config.benchmark import load_benchmark
from nvlm_train.config.compose import recipes_dir
from nvlm_train.config.request import LONGEST, take_request
from nvlm_train.config.schema import Data, Run
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation.benchmark import command
from nvlm_train.training.logs import EVAL, read_rows
from nvlm_train.verbs import base

RECIPES = recipes_dir() / "eval"
RUN = Run(recipe="test", stage="sft", model=MODEL, data=Data())
OPTIONS = {"checkpoint": "runs/x", "data": None, "limit": 0, "max_new_tokens": 4, "out": None, "json": False}


def known(name, count):
    return replace(load_benchmark(name, RECIPES), count=count)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """A run directory, and a model that says "no" in place of the one that `open_model` would load from it."""
    step = tmp_path / "run" / "checkpoints" / "sft" / "step-00000007"
    step.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("")
    model = command.Model(RUN, always("no"), ENCODER, step, SimpleNamespace(stage="sft", step=7))
    monkeypatch.setattr(command, "open_model", lambda runs, checkpoint: model)
    return model


def ask_charts(folder, answers):
    write_parquet(folder / "data" / "test-0.parquet", [
        {"type": ("human_test", "augmented_test")[place % 2], "question": f"Number {place}?", "answer": answer,
         "image": {"bytes": picture(), "path": None}} for place, answer in enumerate(answers)])


def test_a_benchmark_is_asked_scored_and_kept(opened, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "AT_ONCE", 3)      # several rounds, the last one short
    ask_charts(tmp_path / "charts", ["no", "yes", "No", "5", "x", "no", "no", "no"])
    command.benchmark_command([RUN], known("chartqa", 8), {**OPTIONS, "data": str(tmp_path / "charts")})
    out = capsys.readouterr().out
    assert "62.5" in out and "human_test" in out
    folder = opened.run_dir / "benchmarks" / "sft-step-00000007"
    facts = json.loads((folder / "chartqa.json").read_text())
    assert (facts["score"], facts["points"], facts["count"], facts["scorer"], facts["unanswered"]) == (0.625, 62.5, 8, "relaxed", 0)
    assert facts["low"] < 0.625 < facts["high"]
    assert {name: (one["score"], one["count"]) for name, one in facts["by_category"].items()} == {
        "augmented_test": (0.5, 4), "human_test": (0.75, 4)}
    rows = [json.loads(line) for line in (folder / "chartqa.jsonl").read_text().splitlines()]
    assert rows[3] == {"id": "000003", "answer": "no", "extracted": "no", "score": 0.0, "truths": ["5"], "category": "augmented_test"}
    [row] = read_rows(opened.run_dir / EVAL)
    assert (row["stage"], row["step"], row["kind"], row["task"]) == ("sft scores", 7, "score", "chartqa")
    assert row["scores"] == {"score": 0.625, "low": facts["low"], "high": facts["high"], "questions": 8}
    assert (opened.run_dir / "report.html").exists()
    assert all(len(row.tiles_nCPP) for row in opened.engine.rows if row.keys)


def test_a_question_that_cannot_be_put_counts_0_with_its_reason(opened, tmp_path, capsys):
    write_parquet(tmp_path / "charts" / "data" / "test-0.parquet", [
        {"type": "human_test", "question": "One?", "answer": "no", "image": {"bytes": image, "path": None}}
        for image in (picture(), b"no picture", bomb())])
    command.benchmark_command([RUN], known("chartqa", 3), {**OPTIONS, "data": str(tmp_path / "charts"), "json": True})
    facts = json.loads(capsys.readouterr().out)
    assert (facts["unanswered"], facts["count"], round(facts["score"], 3)) == (2, 3, 0.333)
    rows = [json.loads(line) for line in (opened.run_dir / "benchmarks" / "sft-step-00000007" / "chartqa.jsonl").read_text().splitlines()]
    assert [row.get("refused", "").partition(":")[0] for row in rows] == ["", "broken_image", "image_too_large"]


def test_a_benchmark_of_which_nothing_can_be_put_has_no_score(opened, tmp_path):
    ask_charts(tmp_path / "charts", ["no", "yes"])
    with pytest.raises(DataError, match="none of the 2 questions could be put.*too_long.*up to 500 tokens"):
        command.benchmark_command([RUN], known("chartqa", 2), {**OPTIONS, "data": str(tmp_path / "charts"), "max_new_tokens": 500})
    assert not (opened.run_dir / "benchmarks").exists()


def bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    plain = picture()
    head = b"IHDR" + struct.pack(">II", 60000, 60000) + plain[24:29]
    return plain[:12] + head + struct.pack(">I", zlib.crc32(head)) + plain[33:]


def test_the_demos_questions_are_scored_as_always(opened, tmp_path):
    write_shards(tmp_path / "quiz", [question(n, "no" if n < 6 else "yes", task="quiz") for n in range(8)])
    command.benchmark_command([RUN], known("demo", 0), {**OPTIONS, "data": str(tmp_path / "quiz"), "limit": 4, "out": str(tmp_path / "out")})
    facts = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert (facts["score"], facts["count"], facts["by_category"]["quiz"]["count"], facts["limit"]) == (0.75, 4, 4, 4)
    ids = [json.loads(line)["id"] for line in (tmp_path / "out" / "demo.jsonl").read_text().splitlines()]
    assert ids == ["quiz/q0", "quiz/q2", "quiz/q4", "quiz/q6"]


def test_answers_must_have_a_place_before_anything_is_asked(opened, tmp_path):
    (opened.run_dir / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="eval.out=FOLDER"):
        command.benchmark_command([RUN], known("chartqa", 0), {**OPTIONS, "data": str(tmp_path)})
    assert not opened.engine.rows


def test_a_blind_model_is_not_asked_about_pictures(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "open_model", lambda runs, checkpoint: replace(opened, blind="its encoder is a random one"))
    ask_charts(tmp_path / "charts", ["no"])
    with pytest.raises(ConfigError, match="eval=chartqa asks about pictures: its encoder"):
        command.benchmark_command([RUN], known("chartqa", 1), {**OPTIONS, "data": str(tmp_path / "charts")})


# The command line

def test_words_of_the_command_line(monkeypatch, tmp_path):
    got = {}
    monkeypatch.setattr(command, "benchmark_command", lambda runs, benchmark, options: got.update(benchmark=benchmark, options=options))
    words = ["eval", "recipe=nvlm_d_tiny", "checkpoint=runs/x", "eval=chartqa", f"eval.data={tmp_path}", "eval.limit=5"]
    assert cli.main(words) == 0
    assert (got["benchmark"].name, got["options"]["max_new_tokens"], got["options"]["limit"]) == ("chartqa", 32, 5)
    assert cli.main([*words, "eval.max_new_tokens=7", "eval.out=x"]) == 0
    assert (got["options"]["max_new_tokens"], got["options"]["out"]) == (7, "x")
    assert take_request(["eval=mmmu"])[0].benchmark == "mmmu" and take_request([])[0].options()["max_new_tokens"] == LONGEST


def test_what_belongs_elsewhere_is_refused(capsys):
    assert cli.main(["eval", "recipe=nvlm_d_tiny", "checkpoint=runs/x", "eval=chartqaa"]) == 2
    assert "did you mean chartqa" in capsys.readouterr().err
    assert cli.main(["eval", "recipe=nvlm_d_tiny", "checkpoint=runs/x", "eval.out=x"]) == 2
    assert "add eval=NAME" in capsys.readouterr().err
    assert cli.main(["train", "recipe=nvlm_d_tiny", "eval=mmmu"]) == 2
    assert cli.main(["score"]) == 2
    said = capsys.readouterr().err
    assert "add eval=NAME" in said and "add predictions=FILE" in said
    assert cli.main(["score", "eval=gsm8k", "predictions=x", "checkpoint=y", "limit=3"]) == 2
    said = capsys.readouterr().err
    assert "limit=3: nvlm score knows" in said and "nvlm score asks none" in said


# Answers from a file

@pytest.fixture(params=[name for name in WRITERS if name != "ai2d_no_mask"])
def fixture(request, tmp_path, monkeypatch):
    """A benchmark's files, and right answers to them by id; its recipe expects as many questions."""
    answers = WRITERS[request.param](tmp_path)
    benchmark = known(request.param, len(answers))
    monkeypatch.setattr(base, "load_benchmark", lambda name, folder: benchmark)
    ids = [question.id for question in command.Questions(benchmark, [str(tmp_path)])]
    return benchmark, tmp_path, dict(zip(ids, answers, strict=True))


def score(benchmark, folder, rows, *words):
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return cli.main(["score", "--json", f"eval={benchmark.name}", f"eval.data={folder}", f"predictions={folder / 'answers.jsonl'}", *words])


def test_right_answers_in_any_order_score_all(fixture, capsys):
    benchmark, folder, answers = fixture
    rows = [{"id": key, "answer": answer, "more": 1} for key, answer in reversed(answers.items())]
    assert score(benchmark, folder, rows) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["count"] == len(answers) and (facts["points"] == benchmark.points if benchmark.scorer != "cider" else facts["points"] > 500)


def score_gsm8k(tmp_path, monkeypatch, text, *words):
    WRITERS["gsm8k"](tmp_path)
    monkeypatch.setattr(base, "load_benchmark", lambda name, folder: known("gsm8k", 2))
    (tmp_path / "answers.jsonl").write_text(text)
    return cli.main(["score", "eval=gsm8k", f"eval.data={tmp_path}", f"predictions={tmp_path / 'answers.jsonl'}", *words])


RIGHT = '{"id": "000000", "answer": "7"}\n'


@pytest.mark.parametrize(("text", "told"), [
    (RIGHT, "has 1 answers to 2 questions: 1 questions have no answer (000001)"),
    ("", "has 0 answers to 2 questions: 2 questions have no answer (000000, 000001)"),
    (f'{RIGHT}{{"id": 1, "answer": "7"}}\n', "1 questions have no answer (000001), and 1 answers are to no question (1)"),
    (RIGHT * 2, "line 2: a second answer to '000000'"), (f"{RIGHT}no json\n", "line 2 is not JSON"),
    ('{"id": "000000", "text": "7"}\n', 'expected {"id"'), ('{"id": "000000", "answer": 7}\n', 'expected {"id"')])
def test_files_of_answers_that_cannot_be_scored(tmp_path, monkeypatch, capsys, text, told):
    assert score_gsm8k(tmp_path, monkeypatch, text) == 1
    assert told in capsys.readouterr().err.replace("\n      ", " ")


def test_a_part_is_scored_with_the_same_limit(tmp_path, monkeypatch, capsys):
    assert score_gsm8k(tmp_path, monkeypatch, RIGHT, "eval.limit=1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["points"] == 100.0


def test_a_missing_file_of_answers(tmp_path):
    WRITERS["gsm8k"](tmp_path)
    with pytest.raises(DataError, match="predictions=.*cannot be read"):
        command.score_command(known("gsm8k", 2), tmp_path / "none.jsonl", str(tmp_path), 0, False)
