"""What every test runs under: one thread a process, no network service, and a cache of its own."""

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


def pytest_unconfigure(config):
    if hasattr(config, "nvlm_cache"):
        shutil.rmtree(config.nvlm_cache, ignore_errors=True)
