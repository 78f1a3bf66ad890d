"""Errors that a person can act on. Each says what is wrong, both numbers where there are two, and what to do."""


def first_line(error: BaseException) -> str:
    """What an error says, for a sentence that goes on; "" if it says nothing."""
    return (str(error).splitlines() or [""])[0]


class NvlmError(Exception):
    """Base of every error this package raises on purpose; the CLI prints its text without a traceback."""


class ConfigError(NvlmError):
    """The run as asked for cannot exist. Carries every problem found, not only the first."""

    def __init__(self, problems):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(NvlmError):
    """A shard, an index or a blend is not what it claims to be: the run must not start on it."""


class SampleRefused(NvlmError):
    """One sample cannot be used. Its slot stays empty and is counted under `reason` (a short stable word)."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


class CheckpointError(NvlmError):
    """A checkpoint is incomplete, damaged, of another model, or unsafe to read."""


class TrainingError(NvlmError):
    """Training cannot go on (too many bad samples, too many non-finite steps, a full disk)."""


class JobError(NvlmError):
    """The processes of a job do not find each other, or one of them ended it for all."""


class LaunchError(NvlmError):
    """A job cannot be submitted: no Slurm here, or Slurm does not take it."""
