"""What every test runs under: one thread a process, no network service, and a cache of its own. And the table of layouts at the end:
it stands here since the process that prints, where several run the tests, reads no conftest but this one."""

import os
import shutil
import tempfile

# Before torch is imported anywhere: several test processes share a few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NVLM_DATA", "NVLM_WEIGHTS"):
    os.environ.pop(name, None)


def pytest_configure(config):
    """Built-in datasets are written to a folder of this session; xdist's workers share their parent's."""
    if not hasattr(config, "workerinput"):
        config.nvlm_cache = os.environ["NVLM_CACHE"] = tempfile.mkdtemp(prefix="nvlm-test-cache-")
        os.environ["HF_MODULES_CACHE"] = f"{config.nvlm_cache}/modules"     # where transformers puts an exported model's code


def pytest_unconfigure(config):
    if hasattr(config, "nvlm_cache"):
        shutil.rmtree(config.nvlm_cache, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """The table of layouts, from what the parity tests recorded."""
    rows = [row for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
            for name, row in report.user_properties if name == "parity" and report.when == "call"]
    if not rows:
        return
    terminalreporter.section("parity: largest relative difference to one process over all steps")
    parts = ["loss", "grad_norm", "connector", "cross-attention", "gates"]
    terminalreporter.line(f"{'recipe':<16}{'layout':<26}{'stage':<10}{'steps':>6}" + "".join(f"{part:>17}" for part in parts))
    for row in rows:
        numbers = "".join(f"{row[part]:>17.1e}" if part in row else " " * 17 for part in parts)
        terminalreporter.line(f"{row['recipe']:<16}{row['layout']:<26}{row['stage']:<10}{row['steps']:>6}{numbers}")
