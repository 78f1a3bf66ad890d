"""Which device this process computes on, and in which precision."""

import os
import socket

import torch

from nvlm_train.errors import ConfigError
from nvlm_train.parallel import cpu


def choose_device(wanted: str) -> torch.device:
    """As `find_device`; on the CPU, Megatron-Core is prepared for it, on a GPU it becomes the current one."""
    device = find_device(wanted)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        cpu.enable()
    return device


def find_device(wanted: str) -> torch.device:
    """`auto` takes this process's GPU if there is one. Raises ConfigError if a GPU is wanted and missing."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device=cuda, but torch sees no GPU: use run.device=auto, or check the driver with `nvlm doctor`")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if gpus == 1 and "SLURM_GPUS_PER_TASK" in os.environ:
        local = 0       # Slurm shows each task its own GPU alone
    if local >= gpus:
        raise ConfigError(f"process {local} of {socket.gethostname()} has no GPU of its own: {gpus} found; start --nproc-per-node {gpus}, or "
                          "give every task of srun a GPU (--gpus-per-task=1)")
    return torch.device("cuda", local)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: bf16 (with fp32 master weights in the optimizer) on a GPU, fp32 on the CPU."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[wanted]


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without the host waiting: from pinned memory (torch keeps it for the next) a copy is only queued."""
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
