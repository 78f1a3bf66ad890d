"""Where every thread of this process stands, for a person who was not there."""

import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

import torch.distributed as dist

import nvlm_train

_OURS = str(Path(nvlm_train.__file__).parent)
_SHIM = f"{_OURS}/parallel/cpu.py"      # stands in every stack on the CPU, and says nothing
_WAITING = (str(Path(dist.__file__).parent),)


def main_frame() -> FrameType | None:
    """The innermost frame of the main thread."""
    return sys._current_frames().get(threading.main_thread().ident)


def own_line(frame: FrameType | None) -> str:
    """The innermost line of ours at or above a frame: `engine/megatron.py:155 in _reduce`; else the innermost line at all."""
    innermost = frame
    while frame is not None:
        if frame.f_code.co_filename.startswith(_OURS) and frame.f_code.co_filename != _SHIM:
            return f"{frame.f_code.co_filename.removeprefix(_OURS + '/')}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return f"{innermost.f_code.co_filename}:{innermost.f_lineno}" if innermost is not None else "nowhere"


def in_collective(frame: FrameType | None) -> bool:
    """Whether a frame waits for other ranks: torch.distributed is the innermost or close to it."""
    for _ in range(4):
        if frame is None:
            return False
        if frame.f_code.co_filename.startswith(_WAITING):
            return True
        frame = frame.f_back
    return False


def write_stacks(path: Path, head: str) -> None:
    """Every thread's stack into a file, under a line of heading. Raises OSError."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [head, time.strftime("%Y-%m-%d %H:%M:%S %z")]
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            parts.append(f"\nthread {names.get(ident, ident)}, innermost last:\n" + "".join(traceback.format_stack(frame)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
