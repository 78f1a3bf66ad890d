"""What every test runs under: one thread a process, no network service, and a cache of its own. And the tables at the end: they
stand here since the process that prints, where several run the tests, reads no conftest but this one."""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

# Before torch is imported anywhere: several test processes share a few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NVLM_DATA", "NVLM_WEIGHTS"):
    os.environ.pop(name, None)


# What else runs on the machine decides how long an example takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser):
    parser.addoption("--fake-gpu", action="store_true", help="on a GPU that is not there (tests/fake_gpu): pytest tests/gpu --fake-gpu")


def pytest_configure(config):
    """Built-in datasets are written to a folder of this session; xdist's workers share their parent's."""
    if not hasattr(config, "workerinput"):
        config.nvlm_cache = os.environ["NVLM_CACHE"] = tempfile.mkdtemp(prefix="nvlm-test-cache-")
        os.environ["HF_MODULES_CACHE"] = f"{config.nvlm_cache}/modules"     # where transformers puts an exported model's code
    if config.getoption("--fake-gpu"):
        from tests.fake_gpu import gpu
        if problem := gpu.problem():
            raise pytest.UsageError(f"--fake-gpu: {problem}")
        gpu.enable()


def pytest_unconfigure(config):
    if hasattr(config, "nvlm_cache"):
        shutil.rmtree(config.nvlm_cache, ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    """Files whose tests wait for other processes come first, for two workers to finish together (`make test` keeps this order)."""
    weight: dict = {}
    for item in items:
        own = 2 if item.get_closest_marker("distributed") else 1 if item.get_closest_marker("slow") else 0
        weight[item.path] = max(weight.get(item.path, 0), own)
    items.sort(key=lambda item: -weight[item.path])
    if config.getoption("--fake-gpu"):
        for item in items:
            if item.get_closest_marker("hardware"):
                item.add_marker(pytest.mark.skip(reason="needs a real GPU"))


def pytest_terminal_summary(terminalreporter):
    """The table of layouts, from what the parity tests recorded; the stories of runs that were disturbed, from what those on Slurm did."""
    _layouts(terminalreporter, _recorded(terminalreporter, "parity"))
    for lines in _recorded(terminalreporter, "story"):
        terminalreporter.section("a run on a real Slurm")
        for line in lines:
            terminalreporter.line(line)


def _recorded(reporter, name: str) -> list:
    return [value for report in reporter.getreports("passed") + reporter.getreports("failed")
            for key, value in report.user_properties if key == name and report.when == "call"]


def _layouts(reporter, rows: list[dict]) -> None:
    if not rows:
        return
    reporter.section("parity: largest relative difference to one process over all steps")
    parts = ["loss", "grad_norm", "connector", "cross-attention", "gates"]
    reporter.line(f"{'recipe':<16}{'layout':<26}{'stage':<10}{'steps':>6}" + "".join(f"{part:>17}" for part in parts))
    for row in rows:
        numbers = "".join(f"{row[part]:>17.1e}" if part in row else " " * 17 for part in parts)
        reporter.line(f"{row['recipe']:<16}{row['layout']:<26}{row['stage']:<10}{row['steps']:>6}{numbers}")
