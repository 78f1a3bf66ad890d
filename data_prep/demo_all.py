"""NVLM-D, -X and -H on the demo's data, compared: `make demo-all`, or `python -m data_prep.demo_all [FOLDER]` (default
runs/demo-all).

This is `nvlm compare` on the demo's recipes, the small backbones that come with the repository, and the demo's held-out questions.
Each design is pretrained and finetuned once, text-only samples blended in. An interrupted comparison goes on where it stopped.
Exit code: 0 done, 1 something failed, or a design does not use its pictures.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from data_prep import tiny
from data_prep.demo import LANGUAGE, MARGIN, MAX_NEW_TOKENS, PICTURE_TASKS, PROCESSES, VISION
from nvlm_train import cli
from nvlm_train.errors import NvlmError
from nvlm_train.training.progress import duration

RECIPES = ("nvlm_d_demo", "nvlm_x_demo", "nvlm_h_demo")


def main(arguments: list[str]) -> int:
    began = time.perf_counter()
    folder = Path(arguments[0] if arguments else "runs/demo-all")
    try:
        tiny.ensure("demo", progress=lambda name: print(f"wrote {name}", flush=True))
    except NvlmError as error:
        print(error, file=sys.stderr)
        return 1
    code = cli.main(["compare", *words(folder)])
    if code:
        return code
    print(f"{duration(time.perf_counter() - began)} in all.")
    blind = blind_designs(json.loads((folder / "compare.json").read_text(encoding="utf-8")))
    for name, gain in blind.items():
        print(f"{name}: pictures added {gain:.1%} on questions about shapes, less than {MARGIN:.0%}: it did not learn to see.")
    return 1 if blind else 0


def words(folder: Path) -> list[str]:
    """What `nvlm compare` is asked."""
    tasks = [f"eval.tasks.{name}=builtin:demo/{name}_test" for name in (*PICTURE_TASKS, "text")]
    weights = [f"model.vision.weights={VISION}", f"model.language.weights={LANGUAGE}"]
    return [f"designs={','.join(RECIPES)}", *weights, *tasks, f"eval.max_new_tokens={MAX_NEW_TOKENS}", f"processes={PROCESSES}",
            f"run.dir={folder}"]


def blind_designs(results: Mapping) -> dict[str, float]:
    """Design -> what pictures added to its accuracy on the shapes' questions, of the designs to which they added less than MARGIN."""
    shapes = {name: design["tasks"][PICTURE_TASKS[0]] for name, design in results["designs"].items()}
    gains = {name: marks["accuracy"] - marks["blanked"] for name, marks in shapes.items()}
    return {name: gain for name, gain in gains.items() if gain < MARGIN}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
