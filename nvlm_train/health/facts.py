"""What a process is: where it runs, on which versions, under which variables. Local; reading it takes milliseconds."""

import hashlib
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

import nvlm_train
from nvlm_train.optional import installed
from nvlm_train.parallel.job import Place

# Variables that change how ranks talk or compute: they must agree, or one rank is slower or silent.
WATCHED = ("OMP_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF", "GLOO_SOCKET_IFNAME")
WATCHED_FAMILIES = ("NCCL_", "TORCH_NCCL_", "NVTE_", "UCX_")


@dataclass(frozen=True)
class Facts:
    """One rank. versions: name -> version, of what must or should agree; gpu: "NVIDIA H100, GPU-…", "" on the CPU."""

    rank: int
    local_rank: int
    world: int
    host: str
    pid: int
    born: float         # when the process started, in seconds since 1970: with the pid it names one process for good
    gpu: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.host})"


def facts_of(place: Place, device: torch.device) -> Facts:
    """This process's facts."""
    gpu = ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name}, {getattr(properties, 'uuid', device.index)}"
    environment = {name: value for name, value in sorted(os.environ.items()) if name in WATCHED or name.startswith(WATCHED_FAMILIES)}
    return Facts(place.rank, place.local_rank, place.world, socket.gethostname(), os.getpid(), psutil.Process().create_time(), gpu,
                 versions(device), environment)


def process_of(rank: Facts) -> psutil.Process | None:
    """A rank's process, to be asked for on its own host: None if it has gone, though another may have its number by now."""
    try:
        process = psutil.Process(rank.pid)
        return process if abs(process.create_time() - rank.born) <= 1 else None
    except psutil.Error:
        return None


def lives(rank: Facts) -> bool:
    """Whether a rank of this host still runs."""
    process = process_of(rank)
    try:
        return process is not None and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def versions(device: torch.device) -> dict[str, str]:
    found: dict[str, Any] = {
        "nvlm_train": f"{nvlm_train.__version__}, source {source_hash()}", "torch": torch.__version__,
        "megatron-core": installed("megatron-core") or "none", "Python": platform.python_version(),
    }
    if device.type == "cuda":
        found["CUDA of torch"] = torch.version.cuda
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
        found["NVIDIA driver"] = _driver()
    return {name: str(value) for name, value in found.items()}


def source_hash() -> str:
    """12 hex digits that name the code which runs here, changes that are in no commit included."""
    digest, root = hashlib.sha256(), Path(nvlm_train.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _driver() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
