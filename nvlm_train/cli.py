"""The door: `nvlm VERB [--json|--dry-run|--help] key=value …`.

Settings are `key=value` words, flags are dashed. Each verb imports what it needs when it runs: torch and Megatron take
seconds to load, and a typo should not. Exit codes: 0 done, 2 the configuration or command line is wrong, 1 anything else, save
for errors that bring their own (75: stopped as told, everything saved; start again to go on; 77: stopped by the text guard).
"""

import os
import sys
from collections.abc import Sequence

from nvlm_train import __version__
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import ConfigError, NvlmError
from nvlm_train.parallel.srun import adopt_srun
from nvlm_train.redaction import of_environment, redact_text, redact_tracebacks
from nvlm_train.verbs import VERBS, rank

USAGE = """\
nvlm {version}: train your own NVLM

usage: nvlm VERB [FLAG …] key=value …

{verbs}

  nvlm train recipe=nvlm_d_tiny                          both stages, on built-in data
  nvlm train recipe=nvlm_d_tiny stage=sft train.lr=5e-4  one stage, one setting changed
  nvlm compare designs=nvlm_d_tiny,nvlm_x_tiny,nvlm_h_tiny
  nvlm generate checkpoint=runs/nvlm_d_tiny image=cat.png prompt="What is this?"

Help on one verb: nvlm VERB --help. Under several processes: torchrun … -m nvlm_train VERB …"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors meant for people are printed without a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        adopt_srun(os.environ)
        return _dispatch(argv)
    except ConfigError as error:
        # The same on every rank of a job: said once.
        if rank() == 0:
            _complain(error)
        return 2
    except NvlmError as error:
        if not getattr(error, "said_by_another", False):    # of a job, whose ranks all raised the same
            _complain(error)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `nvlm show-config … | head`: nobody is reading any more. Keeps the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        # Only now: torch.distributed puts a hook of its own in place when it starts, which would print all of it.
        redact_tracebacks(of_environment(os.environ), lead=f"[rank {rank()}] " if "RANK" in os.environ else "")
        raise


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h", "help"):
        listing = "\n".join(f"  {name:<16} {verb.summary}" for name, verb in VERBS.items())
        print(USAGE.format(version=__version__, verbs=listing))
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name, words = argv[0], argv[1:]
    if name not in VERBS:
        raise ConfigError(f"{name}: no such verb{suggestion(name, list(VERBS))} (known: {', '.join(VERBS)})")
    verb = VERBS[name]
    flags = {word for word in words if word.startswith("-")}
    if flags & {"--help", "-h"}:
        print(f"nvlm {name}{''.join(f' [{flag}]' for flag in verb.flags)} key=value …\n\n{verb.help}")
        return 0
    if unknown := sorted(flags - set(verb.flags)):
        raise ConfigError([f"{flag}: {name} has no such flag{suggestion(flag, list(verb.flags))}; settings are key=value"
                           for flag in unknown])
    return verb.run([word for word in words if not word.startswith("-")], flags) or 0


def _complain(error: NvlmError) -> None:
    lead = "nvlm: " if rank() == 0 else f"nvlm (rank {rank()}): "
    print(lead + redact_text(str(error), of_environment(os.environ)).replace("\n", "\n      "), file=sys.stderr)
