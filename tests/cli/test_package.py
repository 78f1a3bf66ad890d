"""The package as users get it: a wheel that holds the recipes, and declared requirements that match what is imported."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import nvlm_train
from nvlm_train.config.compose import recipe_names, recipes_dir

ROOT = Path(nvlm_train.__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXPORTED = ROOT / "nvlm_train" / "huggingface" / "assets"     # runs where an exported model does, with what that needs
SOURCES = [path for package in ("nvlm_train", "data_prep") for path in sorted((ROOT / package).rglob("*.py"))
           if not path.is_relative_to(EXPORTED)]
NOT_NAMED_ALIKE = {"skimage": "scikit-image"}     # where the demo's packages are not installed


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in requirements}


def imported_at_start(path: Path) -> set[str]:
    """Top-level packages that a file imports outside functions and `try`: what it cannot do without."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"nvlm_train", "data_prep"}


def test_requirements_are_what_the_code_imports():
    extras = {path: names(PROJECT["optional-dependencies"][extra]) for path, extra in (("data_prep", "demo"), ("nvlm_train/serving", "serve"))}
    base = names(PROJECT["dependencies"])
    distributions = packages_distributions()
    undeclared = {}
    used = set()
    for path in SOURCES:
        allowed = base.union(*(more for folder, more in extras.items() if path.is_relative_to(ROOT / folder)))
        for module in imported_at_start(path):
            known = distributions.get(module, [NOT_NAMED_ALIKE.get(module, module)])
            providers = {name.lower().replace("_", "-") for name in known}
            used |= providers
            if not providers & allowed:
                undeclared.setdefault(str(path.relative_to(ROOT)), []).append(module)
    assert undeclared == {}
    assert base - used == set(), "required and yet never imported"
    assert len(SOURCES) > 30


def test_apex_is_never_required():
    everything = names([*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)])
    assert "apex" not in everything and len(everything) > 15


@pytest.mark.slow
def test_installed_wheel_finds_its_recipes(tmp_path):
    """Built, unpacked by pip into a folder of its own, and run from elsewhere without the checkout on the path."""
    def run(*words, **options) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=300, **options).stdout

    # From a copy: setuptools writes into its source folder, and an old build/ there would end up in the wheel.
    source = tmp_path / "source"
    tracked = ["nvlm_train", "data_prep", "recipes", "setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"]
    source.mkdir()
    run("cp", "-r", *(str(ROOT / name) for name in tracked), str(source))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("nvlm_train-*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    shipped = {path.relative_to(recipes_dir()).as_posix() for path in recipes_dir().rglob("*.yaml")}
    recipes = "nvlm_train/recipes/"
    assert {name.removeprefix(recipes) for name in held if name.endswith(".yaml") and name.startswith(recipes)} == shipped
    assert {name for name in held if name.endswith(".yaml") and not name.startswith(recipes)} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "data_prep" / "catalog").glob("*.yaml")}
    assert len(shipped) >= 15
    assert {name for name in held if name.startswith("nvlm_train/huggingface/assets/")} == {
        path.relative_to(ROOT).as_posix() for path in EXPORTED.glob("*.py")}
    assert {"nvlm_train/recipes/cluster/dgx_h100.yaml", "nvlm_train/launching/job.sbatch.j2",
            "nvlm_train/training/profile/profile.html.j2", "nvlm_train/training/profile/profile.css"} <= set(held)
    assert {f"nvlm_train/serving/page.{kind}" for kind in ("html", "css", "js")} <= set(held)
    assert "nvlm_train/assets/tiny_tokenizer.json" in held and "data_prep/tiny.py" in held
    assert not [name for name in held if name.startswith(("tests", "recipes", "benchmarks"))]

    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    away = tmp_path / "away"
    away.mkdir()
    outside = {"cwd": away, "env": {**os.environ, "PYTHONPATH": str(site)}}
    code = "from nvlm_train.config.compose import recipes_dir, recipe_names; print(recipes_dir()); print(*recipe_names())"
    told = run(sys.executable, "-c", code, **outside).splitlines()
    assert told[0] == str(site / "nvlm_train" / "recipes")
    assert told[1].split() == recipe_names()
    shown = run(sys.executable, site / "bin" / "nvlm", "show-config", "--json", "recipe=nvlm_d_tiny", **outside)
    assert list(json.loads(shown)) == ["pretrain", "sft"]
    job = run(sys.executable, site / "bin" / "nvlm", "submit", "recipe=nvlm_d_tiny", "cluster=slurm", "--dry-run", **outside)
    assert job.startswith("#!/usr/bin/env bash\n#SBATCH ")
    assert list(away.iterdir()) == []
