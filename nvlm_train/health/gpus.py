"""What the driver says of this rank's GPU: memory that others hold, memory errors, a clock held back. Nothing where nvidia-smi is not."""

import os
import subprocess

import torch

from nvlm_train.doctor import GIB, NOTE, PROBLEM

_FIELDS = ("memory.used", "ecc.errors.uncorrected.volatile.total", "clocks_throttle_reasons.hw_slowdown",
           "clocks_throttle_reasons.hw_thermal_slowdown", "clocks_throttle_reasons.sw_thermal_slowdown")
_LIMIT_S = 20
FOREIGN = GIB       # a context of our own takes less


def remarks(device: torch.device) -> list[tuple[str, str]]:
    """(status, sentence) of whatever is not right about this rank's GPU."""
    if device.type != "cuda":
        return []
    properties = torch.cuda.get_device_properties(device)
    uuid = f"GPU-{getattr(properties, 'uuid', '')}"
    free, total = torch.cuda.mem_get_info(device)
    mine = torch.cuda.memory_reserved(device)
    found = []
    if (foreign := total - free - mine) > FOREIGN:
        found.append((NOTE, f"{foreign / GIB:.1f} of {total / GIB:.1f} GiB are in use by others{_holders(uuid)}"))
    return found + parse(_ask(f"--query-gpu={','.join(_FIELDS)}", f"--id={uuid}"))


def parse(line: str) -> list[tuple[str, str]]:
    """What nvidia-smi's line of _FIELDS means; nothing for an empty one, nor for fields that this GPU does not have."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(_FIELDS):
        return []
    found = []
    if values[1].isdecimal() and int(values[1]):
        found.append((PROBLEM, f"{values[1]} uncorrected memory errors (ECC) since the driver started: reset or replace it"))
    if held := [name.rsplit(".", 1)[1] for name, value in zip(_FIELDS[2:], values[2:], strict=True) if value == "Active"]:
        found.append((NOTE, f"its clock is held back ({', '.join(held)}): look at power and cooling"))
    return found


def _holders(uuid: str) -> str:
    pids = [pid for pid in _ask("--query-compute-apps=pid", f"--id={uuid}").split() if pid != str(os.getpid())]
    return f" (processes {', '.join(pids)})" if pids else ""


def _ask(*words: str) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *words, "--format=csv,noheader,nounits"], capture_output=True, text=True,
                              timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
