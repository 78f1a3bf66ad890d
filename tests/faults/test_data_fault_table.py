"""docs/data_faults.md names tests that exist, for every fault, and leaves none of these files out."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "data_faults.md"
OURS = ("test_data_faults.py", "test_data_attacks.py", "test_picture_faults.py", "test_data_fault_runs.py")


def rows() -> dict[str, list[str]]:
    """Number of each fault -> the tests that its row names, FILE::NAME."""
    found = re.findall(r"^\| (\w+) \| .* \| .* \| (`.*`) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(dict(found)), "a fault has one row"
    return {number: re.findall(r"`([^`]+)`", tests) for number, tests in found}


def collected(file: Path) -> set[str]:
    """Names of the tests that pytest finds in a file."""
    if not file.is_file() or not file.name.startswith("test_"):
        return set()
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_fault_has_a_row():
    assert list(rows()) == [*map(str, range(34, 53)), "budget", "resume"]


def test_every_test_that_is_named_exists():
    named = {test for tests in rows().values() for test in tests}
    assert len(named) > 40
    assert {test for test in named if test.partition("::")[2] not in collected(TESTS / test.partition("::")[0])} == set()


def test_every_test_of_these_files_is_named():
    named = {test for tests in rows().values() for test in tests}
    assert {f"faults/{file}::{test}" for file in OURS for test in collected(TESTS / "faults" / file)} - named == set()
