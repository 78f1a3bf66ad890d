"""Prints the table of layouts once all of them have run."""

import pytest

ROWS = pytest.StashKey()


def pytest_configure(config):
    config.stash[ROWS] = []


@pytest.fixture
def table(request):
    """A list of rows (recipe, layout, stage, steps, loss difference, gradient-norm difference) to be printed at the end."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("parity: largest relative difference to one process over all steps")
        terminalreporter.line(f"{'recipe':<16}{'layout':<26}{'stage':<10}{'steps':>6}{'loss':>12}{'grad norm':>12}")
        for recipe, layout, stage, steps, loss, norm in rows:
            terminalreporter.line(f"{recipe:<16}{layout:<26}{stage:<10}{steps:>6}{loss:>12.1e}{norm:>12.1e}")
