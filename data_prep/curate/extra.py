"""Packages of the `data` extra, imported when they are needed, so that every other verb works without them."""

import importlib
from types import ModuleType

import numpy as np

from nvlm_train.errors import DataError


def package(name: str, needed_for: str) -> ModuleType:
    """An optional package, imported. Raises DataError that tells how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"{needed_for} needs the package {name}, which is not installed ({error}): pip install -e .[data]") from error


def require(verb: str, *names: str) -> None:
    """Raises DataError now, rather than in the middle of the work, if a verb could not be carried out."""
    for name in names:
        package(name, verb)
    if not hasattr(np, "bitwise_count"):
        raise DataError(f"{verb} needs numpy 2 or newer, this is {np.__version__}: pip install -e .[data]")
