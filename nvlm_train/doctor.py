"""`nvlm doctor`: what this machine has for training, and which path each part of a run will take on it.

Everything optional is really imported, since a package may be installed and still not load (Transformer Engine without
libcuda, a build for another torch). Nothing is changed and no process group is started.
"""

import json
import os
import platform
import warnings
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
from packaging.version import Version

from nvlm_train import __version__

PYTHON = ("3.11", "3.13")       # first supported, first not supported
MEGATRON = ("0.16.1", "0.20")
BROKEN = (ImportError, OSError, RuntimeError)
GIB = 2**30

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the report. status: ok, note (works without it), problem (training cannot run)."""

    name: str
    status: str
    text: str


@dataclass(frozen=True)
class Report:
    findings: tuple[Finding, ...]
    paths: dict[str, str]       # part of a run -> how it is computed here, at the default settings

    @property
    def usable(self) -> bool:
        """Whether nothing indispensable is missing."""
        return all(finding.status != PROBLEM for finding in self.findings)


def examine() -> Report:
    """Look at everything; takes some seconds, since heavy packages are imported."""
    torch = _load("torch")
    megatron = _megatron()
    findings = [_python(), _torch(torch), *_devices(torch), *_collectives(torch), megatron, _transformer_engine(), _apex(),
                _optional("DeepSpeed", "deepspeed", "not used in this version"), _cores(), _memory(),
                _optional("wandb", "wandb", "run.wandb needs it: pip install 'nvlm-train[wandb]'"),
                _optional("TensorBoard", "tensorboard", "run.tensorboard needs it: pip install 'nvlm-train[tensorboard]'")]
    paths = _paths(torch) if not isinstance(torch, Exception) else {}
    return Report(tuple(findings), paths)


def as_text(report: Report) -> str:
    mark = {OK: "ok", NOTE: "--", PROBLEM: "!!"}
    lines = [f"nvlm {__version__}", ""]
    lines += [f"  {mark[finding.status]}  {finding.name:<20} {finding.text}" for finding in report.findings]
    if report.paths:
        lines += ["", "What a run does here, unless told otherwise:"]
        lines += [f"      {part:<20} {path}" for part, path in report.paths.items()]
    return "\n".join([*lines, "", "Ready to train." if report.usable else "Not ready: see the lines marked !!."])


def as_json(report: Report) -> str:
    return json.dumps({"version": __version__, "usable": report.usable, **asdict(report)}, indent=2, ensure_ascii=False)


def _load(name: str) -> Any:
    """The module, or the exception that its import raised. Warnings on import say what this report says better."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except BROKEN as error:
        return error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    return _in_range("Python", platform.python_version(), *PYTHON)


def _in_range(name: str, found: str, first: str, last: str) -> Finding:
    if Version(first) <= Version(found) < Version(last):
        return Finding(name, OK, found)
    return Finding(name, PROBLEM, f"{found}, supported from {first} to before {last}")


def _torch(torch: Any) -> Finding:
    if isinstance(torch, Exception):
        return Finding("torch", PROBLEM, f"does not load ({_reason(torch)})")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA in this build"
    return Finding("torch", OK, f"{torch.__version__}, {build}")


def _devices(torch: Any) -> list[Finding]:
    if isinstance(torch, Exception):
        return []
    if not torch.cuda.is_available():
        return [Finding("GPU", NOTE, "none: training runs on the CPU, right but slow")]
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(Finding(f"GPU {index}", OK, f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute capability "
                                                 f"{gpu.major}.{gpu.minor}"))
    return found


def _collectives(torch: Any) -> list[Finding]:
    if isinstance(torch, Exception):
        return []
    distributed = torch.distributed
    if not distributed.is_available():
        return [Finding("collectives", PROBLEM, "this torch was built without torch.distributed")]
    nccl = distributed.is_nccl_available()
    gpu = torch.cuda.is_available()
    text = f"version {'.'.join(map(str, torch.cuda.nccl.version()))}" if nccl and gpu else "built in, unused without a GPU"
    return [
        Finding("gloo (CPU)", OK if distributed.is_gloo_available() else PROBLEM,
                "available" if distributed.is_gloo_available() else "missing: checkpoints and CPU runs need it"),
        Finding("NCCL (GPU)", OK if nccl else PROBLEM if gpu else NOTE, text if nccl else "missing from this torch"),
    ]


def _megatron() -> Finding:
    module = _load("megatron.core")
    if isinstance(module, Exception):
        wanted = f"megatron-core>={MEGATRON[0]},<{MEGATRON[1]}"
        return Finding("Megatron-Core", PROBLEM, f"does not load ({_reason(module)}): pip install '{wanted}'")
    return _in_range("Megatron-Core", _installed("megatron-core") or module.__version__, *MEGATRON)


def _transformer_engine() -> Finding:
    module = _load("transformer_engine.pytorch")
    if isinstance(module, Exception):
        installed = _installed("transformer-engine")
        text = f"{installed} does not load ({_reason(module)})" if installed else "not installed; model.kernels=te needs it"
        return Finding("Transformer Engine", NOTE, text)
    return Finding("Transformer Engine", OK, _installed("transformer-engine") or "found")


def _apex() -> Finding:
    module = _load("apex.optimizers")
    if not isinstance(module, Exception) and hasattr(module, "FusedAdam"):
        return Finding("apex", OK, "NVIDIA's, with FusedAdam")
    if _installed("apex") is None:
        return Finding("apex", NOTE, "not installed; not needed")
    return Finding("apex", NOTE, f"{_installed('apex')} has no FusedAdam: the package called apex on PyPI is an unrelated web "
                                 "toolkit; pip uninstall apex, and build NVIDIA's from its repository if you want it")


def _optional(name: str, module: str, without: str) -> Finding:
    found = _load(module)
    if not isinstance(found, Exception):
        return Finding(name, OK, _installed(module) or "found")
    installed = _installed(module)
    return Finding(name, NOTE, f"{installed} does not load ({_reason(found)})" if installed else f"not installed; {without}")


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("CPU cores", OK, f"{usable} usable of {os.cpu_count()}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    return Finding("memory", OK, f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}")


def _paths(torch: Any) -> dict[str, str]:
    """How each part is computed at the default settings (run.device, model.dtype and model.kernels all auto)."""
    gpu = torch.cuda.is_available()
    varlen = not isinstance(_load("torch.nn.attention.varlen"), Exception)
    if gpu:
        attention = "torch's variable-length flash attention" if varlen else "SDPA under a block mask; torch >= 2.10 is faster"
    else:
        attention = "SDPA, one call per sample of a row"
    return {
        "device": f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}" if gpu else "CPU, collectives over gloo",
        "dtype": "bf16, fp32 master weights and gradients" if gpu else "fp32",
        "attention": attention,
        "norm": "torch's RMSNorm and LayerNorm",
        "linear layers": "Megatron-Core's; model.kernels=te takes Transformer Engine's",
        "optimizer": f"Megatron's distributed optimizer with {_adam(gpu)}",
    }


def _adam(gpu: bool) -> str:
    """The Adam that Megatron-Core picks: Transformer Engine's, else apex's, else torch's."""
    for source, module in (("Transformer Engine", "transformer_engine.pytorch.optimizers"), ("apex", "apex.optimizers")):
        if hasattr(_load(module), "FusedAdam"):
            return f"{source}'s FusedAdam"
    return "torch's AdamW, fused" if gpu else "torch's AdamW"
