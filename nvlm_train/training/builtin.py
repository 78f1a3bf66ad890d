"""Data that comes with the package: `builtin:NAME/FOLDER` in a blend, made on first use."""

from dataclasses import replace

from data_prep import tiny
from nvlm_train.config.schema import Run, Source
from nvlm_train.engine.agree import on_main
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import TrainingError


def with_builtin_data(run: Run, engine: Engine) -> Run:
    """`builtin:NAME/FOLDER` in a blend becomes the folder of a data set that ships with the package, made on first use.

    The main rank makes it first; ranks on nodes with a cache of their own then make theirs.
    """
    sources = [*run.data.blend.values(), *run.data.validation.values()]
    names = sorted({source.path.removeprefix(tiny.BUILTIN).split("/")[0] for source in sources if source.path.startswith(tiny.BUILTIN)})
    if not names:
        return run
    on_main(engine, f"preparing built-in data {', '.join(names)}", lambda: [tiny.ensure(name) for name in names], TrainingError)

    def resolved(blend: dict[str, Source]) -> dict[str, Source]:
        return {key: replace(source, path=tiny.resolve(source.path)) for key, source in blend.items()}

    return replace(run, data=replace(run.data, blend=resolved(run.data.blend), validation=resolved(run.data.validation)))
