"""lmms-eval and VLMEvalKit themselves, their own commands in their own environments, against the real server with a scripted model.

    python -m venv lmms && lmms/bin/pip install lmms-eval==0.7.3 ./plugins/evaluators
    python -m venv vlm && vlm/bin/pip install ms-vlmeval==0.0.20 ./plugins/evaluators
    NVLM_LMMS_EVAL=lmms NVLM_VLMEVALKIT=vlm pytest tests/evaluators/test_whole_harnesses.py -m ""
"""

import csv
import json
import os
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="nvlm serve takes aiohttp")
pytest.importorskip("pyarrow", reason="the task's file is parquet")

import pyarrow
from pyarrow import parquet

from tests.serving.serving_toys import LIMITS, Scripted, png, served

pytestmark = pytest.mark.full

COUNT = 6
TASK = """\
task: tiles
dataset_path: parquet
dataset_kwargs: {data_files: {test: test.parquet}}
test_split: test
output_type: generate_until
doc_to_messages: !function utils.messages
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 20, temperature: 0, do_sample: false, until: ["."]}
process_results: !function utils.results
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: [{version: 1}]
"""
UTILS = """\
import io
from PIL import Image

def visual(doc):
    return [Image.open(io.BytesIO(doc["image"]))]

def messages(doc, lmms_eval_specific_kwargs=None):
    return [{"role": "user", "content": [{"type": "image", "url": visual(doc)[0]}, {"type": "text", "text": doc["question"]}]}]

def results(doc, answers):
    return {"exact_match": float(answers[0] == doc["answer"])}
"""


def environment(name: str, program: str) -> Path:
    """A program of the harness's environment; skips where there is none."""
    folder = os.environ.get(name)
    if not folder:
        pytest.skip(f"{name} names no environment: the lines that make it are in {__file__}")
    return Path(folder).absolute() / "bin" / program


def run(words: list, folder: Path, **more: str) -> str:
    """What a command prints. It has ten minutes, asks no hub, and must end well."""
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True, timeout=600, check=False,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1", **more})
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def rows() -> list[dict]:
    """Questions about pictures of one tile, and of two with a thumbnail; every third has another answer than the model gives."""
    return [{"question": f"How many tiles has number {number}?", "image": png(32 * (1 + number % 2), 32),
             "answer": "9 tiles" if number % 3 == 2 else f"{1 + 2 * (number % 2)} tiles"} for number in range(COUNT)]


@pytest.fixture
def server():
    with served(Scripted(lambda request: f"{len(request.prompt.tiles)} tiles. And more"), LIMITS) as up:
        yield up


def test_lmms_eval(server, tmp_path):
    program = environment("NVLM_LMMS_EVAL", "lmms-eval")
    parquet.write_table(pyarrow.Table.from_pylist(rows()), tmp_path / "test.parquet")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiles.yaml").write_text(TASK)
    (tmp_path / "tasks" / "utils.py").write_text(UTILS)
    run([program, "--model", "nvlm", "--model_args", f"base_url={server.url}/v1,at_once=3", "--tasks", "tiles", "--include_path", "tasks",
         "--output_path", "out"], tmp_path)
    [scores] = tmp_path.glob("out/**/*results.json")
    assert json.loads(scores.read_text())["results"]["tiles"]["exact_match,none"] == pytest.approx(4 / 6)
    assert sorted(len(request.prompt.tiles) for request in server.generator.seen) == [1, 1, 1, 3, 3, 3]


def test_vlmevalkit(server, tmp_path):
    python = environment("NVLM_VLMEVALKIT", "python")
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "Tiles.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image", "question", "A", "B", "answer"])
        table.writerows([number, b64encode(row["image"]).decode(), row["question"], "1 tiles", "3 tiles", "AABBAB"[number]]
                        for number, row in enumerate(rows()))
    told = run([python, "-m", "nvlm_evaluators.vlmevalkit", "--data", "Tiles", "--model", "nvlm", "--judge", "exact_matching", "--work-dir",
                "out"], tmp_path, LMUData=str(tmp_path / "data"), NVLM_BASE_URL=f"{server.url}/v1", NVLM_MAX_NEW_TOKENS="20")
    [scores] = {path.resolve() for path in tmp_path.glob("out/**/*Tiles_acc.csv")}
    [row] = csv.DictReader(scores.open())
    assert float(row["Overall"]) == pytest.approx(4 / 6), told[-2000:]
    assert sorted(len(request.prompt.tiles) for request in server.generator.seen) == [1, 1, 1, 3, 3, 3]
