"""`enable()` gives this process a GPU that is not there: torch.cuda as this project, Megatron-Core and DeepSpeed use it, over `device.cpp`.

Real are autograd, autocast, memory (of the host), dtypes and every number; the messages are gloo's; a compiled function is traced and
differentiated, and then called operation by operation. Not there are speed, streams (all is done when it is called), Triton and NCCL.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.distributed as dist
from torch.utils import cpp_extension

from tests.engine.launching import MARK
from tests.fake_gpu import kernels

GPUS = 8
SOURCE = Path(__file__).with_name("device.cpp")
MEMORY = 80 * 2**30
_device: ModuleType | None = None


def problem() -> str | None:
    """Why there can be none here; None if there can, or is."""
    if _device is not None:
        return None
    if torch.version.cuda or torch.version.hip:
        return "a torch built for GPUs has kernels of its own for the device"
    if not shutil.which("c++"):
        return "no C++ compiler"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"Python's headers are missing, {header}"


def enable(capability: tuple[int, int] = (9, 0)) -> ModuleType:
    """In this process, for good. Idempotent. What it returns counts what the host waits for: waits(), forget(), refuse(bool)."""
    global _device
    if _device is None:
        _device = _loaded(_built())
        os.environ[MARK] = "1"
        _answer_for_torch_cuda(_device, capability)
        _carry_messages(_device)
        _compile_without_triton()
        kernels.install(_uncounted)
    return _device


@contextlib.contextmanager
def _uncounted():
    """The kernels of `kernels.py` read numbers that real ones read on the device."""
    _device.count(False)
    try:
        yield
    finally:
        _device.count(True)


def _built() -> Path:
    """The compiled device: made in half a minute, and kept for whoever has the same torch and source."""
    named = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {sysconfig.get_path('include')}".encode()).hexdigest()[:16]
    made = SOURCE.parents[2] / "build" / "fake_gpu" / f"{named}.so"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            own = Path(folder) / made.name
            include = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_path("include"))]
            libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
            command = ["c++", "-std=c++20", "-O1", "-fPIC", "-shared", "-DUSE_C10D_GLOO", *include, str(SOURCE), "-o", str(own),
                       *libraries, "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{SOURCE.name} does not compile against torch {torch.__version__}:\n{done.stderr[-4000:]}")
            os.replace(own, made)       # two processes at once make the same twice
    return made


def _loaded(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("fake_gpu", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class _Stream:
    """All is done when it is called: nothing is ever waited for."""

    cuda_stream = stream_id = 0

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def query(self) -> bool:
        return True

    def record_event(self, event=None):
        event = event or _Event()
        event.record()
        return event

    def wait_stream(self, *args):
        return None

    wait_event = synchronize = wait_stream


class _Event:
    def __init__(self, *args, **kwargs):
        self.at = 0.0

    def record(self, stream=None):
        self.at = time.perf_counter()

    def elapsed_time(self, other) -> float:
        return 1e3 * (other.at - self.at)

    def query(self) -> bool:
        return True

    def wait(self, stream=None):
        return None

    synchronize = wait


def _answer_for_torch_cuda(device: ModuleType, capability: tuple[int, int]) -> None:
    own = int(os.environ.get("LOCAL_RANK", "0"))
    cuda, here = torch.cuda, _Stream()
    facts = SimpleNamespace(name="fake GPU", major=capability[0], minor=capability[1], total_memory=MEMORY, multi_processor_count=132)
    answers = {
        "is_available": True, "is_initialized": True, "device_count": GPUS, "current_device": own, "get_device_capability": capability,
        "get_device_name": facts.name, "get_device_properties": facts, "is_bf16_supported": True, "current_stream": here,
        "default_stream": here, "is_current_stream_capturing": False, "memory_allocated": 0, "max_memory_allocated": 0,
        "memory_reserved": 0, "max_memory_reserved": 0, "mem_get_info": (MEMORY, MEMORY), "memory_stats": {}, "_exchange_device": own,
        "_maybe_exchange_device": own}
    nothing = ("_lazy_init", "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "set_per_process_memory_fraction")
    for name, answer in (answers | dict.fromkeys(nothing)).items():
        setattr(cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, lambda *args, **kwargs: None)
    cuda.set_sync_debug_mode = lambda mode: device.refuse(mode == "error")
    cuda._lazy_call = lambda call, **kwargs: call()
    cuda.Stream, cuda.Event, cuda.stream = _Stream, _Event, lambda stream: contextlib.nullcontext()
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.manual_seed = cuda.manual_seed_all = cuda.random.manual_seed = torch.default_generator.manual_seed
    cuda.default_generators = (torch.default_generator,) * GPUS
    torch.Tensor.record_stream = lambda self, stream: None
    torch.version.cuda = "13.0"


def _carry_messages(device: ModuleType) -> None:
    def make(store, rank, size, timeout):
        return device.Messages(dist.ProcessGroupGloo(store, rank, size, timeout))

    begin = dist.init_process_group
    dist.Backend.register_backend("fake_nccl", make, devices=["cuda"])
    dist.init_process_group = lambda backend, *args, **kwargs: begin(backend.replace("nccl", "fake_nccl"), *args, **kwargs)


def _compile_without_triton() -> None:
    compiles = torch.compile
    torch.compile = lambda *args, **kwargs: compiles(*args, **kwargs, backend="aot_eager")
