"""Data that comes with the package: `builtin:NAME/FOLDER` in a blend, made on first use."""

from dataclasses import replace
from pathlib import Path

from data_prep import tiny
from nvlm_train.config.schema import Run, Source
from nvlm_train.engine.agree import on_main
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import TrainingError

BUILTIN = "builtin:"


def with_builtin_data(run: Run, engine: Engine) -> Run:
    """`builtin:NAME/FOLDER` in a blend becomes the folder of a data set that ships with the package, made on first use.

    The main rank makes it first; ranks on nodes with a cache of their own then make theirs.
    """
    sources = {**run.data.blend, **run.data.validation}.values()
    names = sorted({source.path.removeprefix(BUILTIN).split("/")[0] for source in sources if source.path.startswith(BUILTIN)})
    if not names:
        return run
    on_main(engine, f"preparing built-in data {', '.join(names)}", lambda: [tiny.ensure(name) for name in names], TrainingError)
    folders = {name: tiny.ensure(name) for name in names}

    def resolved(blend: dict[str, Source]) -> dict[str, Source]:
        return {key: replace(source, path=_resolved_path(source.path, folders)) for key, source in blend.items()}

    return replace(run, data=replace(run.data, blend=resolved(run.data.blend), validation=resolved(run.data.validation)))


def _resolved_path(path: str, folders: dict[str, Path]) -> str:
    if not path.startswith(BUILTIN):
        return path
    name, _, rest = path.removeprefix(BUILTIN).partition("/")
    return str(folders[name] / rest)
