"""What a run reads from a disk, by the settings that name it: for containers, which must show it, and ranks, which must see the same."""

from pathlib import Path

from nvlm_train.config.schema import Run


def local_inputs(run: Run) -> dict[str, Path]:
    """Setting -> the file or folder that it names. Built-in and remote ones are left out: opening them is the loader's."""
    model = run.model
    named = {
        **{f"data.blend.{name}.path": source.path for name, source in run.data.blend.items()},
        **{f"data.validation.{name}.path": source.path for name, source in run.data.validation.items()},
        **{f"evaluate.data.{name}": folder for name, folder in run.evaluate.data.items()},
        **{f"model.{part}.weights": getattr(model, part).weights for part in ("vision", "language", "connector")},
        "model.tokenizer": None if model.tokenizer == "tiny" else model.tokenizer, "init": run.init}
    return {key: Path(path).expanduser() for key, path in named.items()
            if path and "://" not in path and not path.startswith("builtin:")}
