"""Which device this process computes on, and in which precision."""

import os

import torch

from nvlm_train.errors import ConfigError
from nvlm_train.parallel import cpu


def choose_device(wanted: str) -> torch.device:
    """`auto` takes this process's GPU if there is one. On the CPU, Megatron-Core is prepared for it."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device=cuda, but torch sees no GPU: use run.device=auto, or check the driver with `nvlm doctor`")
    if wanted == "cpu" or not torch.cuda.is_available():
        cpu.enable()
        return torch.device("cpu")
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= gpus:
        raise ConfigError(f"process {local} of this node has no GPU of its own: {gpus} found; start --nproc-per-node {gpus}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: bf16 (with fp32 master weights in the optimizer) on a GPU, fp32 on the CPU."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[wanted]
