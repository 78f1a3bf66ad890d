"""Packages that may be missing, or be there and not load: really imported, and the reason told where they do not."""

import sys
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nvlm_train.errors import first_line

# Transformer Engine without libcuda raises the second, a build for another torch any of them.
BROKEN = (ImportError, OSError, RuntimeError)


def load(name: str) -> Any:
    """The module, or the exception that its import raised. Warnings on import say what a report says better."""
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):     # DeepSpeed prints; --json must stay whole
            warnings.simplefilter("ignore")
            return import_module(name)
    except BROKEN as error:
        return error


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def installed(distribution: str) -> str | None:
    """Its version by its metadata; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
