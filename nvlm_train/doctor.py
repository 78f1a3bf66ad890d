"""`nvlm doctor`: what this machine has for training, and which path each part of a run will take on it.

Everything optional is really imported, since a package may be installed and still not load (Transformer Engine without
libcuda, a build for another torch). Nothing is changed and no process group is started.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from packaging.version import Version

from nvlm_train import __version__
from nvlm_train.config.schema import Model
from nvlm_train.kernels import decide, look
from nvlm_train.optional import installed as _installed
from nvlm_train.optional import load as _load
from nvlm_train.optional import reason as _reason

PYTHON = ("3.11", "3.13")       # first supported, first not supported
MEGATRON = ("0.16.1", "0.20")
GIB = 2**30

OK, NOTE, PROBLEM = "ok", "note", "problem"
_MARKS = {OK: "ok", NOTE: "--", PROBLEM: "!!"}


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
        return usable(self.findings)


def examine() -> Report:
    """Look at everything; takes some seconds, since heavy packages are imported."""
    torch = _load("torch")
    megatron = _megatron()
    findings = [_python(), _torch(torch), *_devices(torch), *_collectives(torch), megatron, _transformer_engine(), _apex(),
                _optional("DeepSpeed", "deepspeed", "engine=deepspeed needs it: pip install 'nvlm-train[deepspeed]'"), _cores(), _memory(),
                _optional("wandb", "wandb", "run.wandb needs it: pip install 'nvlm-train[wandb]'"),
                _optional("TensorBoard", "tensorboard", "run.tensorboard needs it: pip install 'nvlm-train[tensorboard]'")]
    paths = _paths(torch) if not isinstance(torch, Exception) else {}
    return Report(tuple(findings), paths)


def usable(findings: Sequence[Finding]) -> bool:
    """Whether none of them is a problem."""
    return all(finding.status != PROBLEM for finding in findings)


def listed(findings: Sequence[Finding]) -> list[str]:
    """A line for each."""
    return [f"  {_MARKS[finding.status]}  {finding.name:<20} {finding.text}" for finding in findings]


def as_text(report: Report) -> str:
    lines = [f"nvlm {__version__}", "", *listed(report.findings)]
    if report.paths:
        lines += ["", "What a run does here, unless told otherwise:"]
        lines += [f"      {part:<20} {path}" for part, path in report.paths.items()]
    return "\n".join([*lines, "", "Ready to train." if report.usable else "Not ready: see the lines marked !!."])


def as_json(report: Report) -> str:
    return json.dumps({"version": __version__, "usable": report.usable, **asdict(report)}, indent=2, ensure_ascii=False)


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
        return Finding("apex", NOTE, "not installed; model.kernels=apex needs it")
    return Finding("apex", NOTE, f"{_installed('apex')} has no FusedAdam: the package called apex on PyPI is an unrelated web "
                                 "toolkit; pip uninstall apex, and build NVIDIA's from its repository if you want it")


def _optional(name: str, module: str, without: str) -> Finding:
    found = _load(module)
    if not isinstance(found, Exception):
        return Finding(name, OK, _installed(module) or "found")
    installed = _installed(module)
    return Finding(name, NOTE, f"{installed} does not load ({_reason(found)})" if installed else f"not installed; {without}")


def _cores() -> Finding:
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("CPU cores", OK, f"{ours} usable of {os.cpu_count()}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    return Finding("memory", OK, f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}")


def _paths(torch: Any) -> dict[str, str]:
    """How each part is computed at the default settings (run.device, model.dtype and model.kernels all auto)."""
    gpu = torch.cuda.is_available()
    plan = decide(Model(), "bf16" if gpu else "fp32", look("cuda" if gpu else "cpu"))
    return {
        "device": f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}" if gpu else "CPU, collectives over gloo",
        "dtype": "bf16, fp32 master weights and gradients" if gpu else "fp32",
        **dict(plan.parts()),
    }
