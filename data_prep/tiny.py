"""The built-in datasets: made on first use, kept in the user's cache, named `builtin:NAME/FOLDER` in recipes.

`builtin:tiny/sft` means the folder `ensure("tiny") / "sft"`. `tiny` needs nothing but this package; `demo` and `exam`, questions
of the demo's kind for experiments, need the packages of the `demo` extra.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from data_prep import demo_data, easy_vqa_facts, exam_data, phrases, puzzles, rendered_text, shards, tiny_data
from nvlm_train.errors import DataError

BUILTIN = "builtin:"
MAKERS: dict[str, tuple[ModuleType, ...]] = {
    "tiny": (tiny_data, phrases, shards),
    "demo": (demo_data, easy_vqa_facts, puzzles, rendered_text, phrases, shards),
    "exam": (exam_data, demo_data, easy_vqa_facts, puzzles, rendered_text, phrases, shards),
}
"""Dataset -> the module whose `SETS` lists its folders, then the other modules that its content depends on."""

_DEMO_PACKAGES = ("easy_vqa", "reasoning_gym", "skimage", "matplotlib")
PACKAGES = {"demo": _DEMO_PACKAGES, "exam": _DEMO_PACKAGES}
EXTRA = {"demo": "demo", "exam": "demo"}    # dataset -> the extra that installs its packages


def ensure(name: str, cache: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Folder of a built-in dataset, which holds a folder of shards per entry of its module's `SETS`. Made if need be.

    Safe to call from several processes at once: each writes a folder of its own, and the first to rename it into place wins.
    cache: where to keep it; default `$NVLM_CACHE`, else `$XDG_CACHE_HOME/nvlm_train`, else `~/.cache/nvlm_train`.
    progress: told each folder's name once it is written. Raises DataError: unknown name, or packages that are not installed.
    """
    if name not in MAKERS:
        raise DataError(f"no built-in dataset is called {name!r}; there are {', '.join(MAKERS)} (as in builtin:tiny/sft)")
    cache = cache or default_cache()
    target = cache / f"{name}-{_fingerprint(name)}"
    if target.is_dir():
        return target
    if missing := [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]:
        raise DataError(f"the built-in dataset {name!r} is made from packages that are not installed ({', '.join(missing)}): "
                        f"pip install -e .[{EXTRA[name]}]")
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    try:
        for folder, samples in MAKERS[name][0].SETS.items():
            shards.write_shards(draft / folder, samples())
            if progress:
                progress(folder)
        _publish(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def resolve(path: str) -> str:
    """`builtin:NAME/FOLDER` as the folder it stands for; any other path as it is. Raises DataError as `ensure`."""
    if not path.startswith(BUILTIN):
        return path
    name, _, folder = path.removeprefix(BUILTIN).partition("/")
    return str(ensure(name) / folder)


def default_cache() -> Path:
    """Where built-in data is kept for this user."""
    if os.environ.get("NVLM_CACHE"):
        return Path(os.environ["NVLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvlm_train"


def _publish(draft: Path, target: Path) -> None:
    """Rename a finished folder into place, unless another process has published the same one meanwhile."""
    draft.chmod(0o755)
    try:
        os.rename(draft, target)
    except OSError:
        if not target.is_dir():
            raise


def _fingerprint(name: str) -> str:
    """Changes with the code that makes the data, so that an old cache is never mistaken for the current one."""
    digest = hashlib.sha256()
    for module in MAKERS[name]:
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:12]
