"""`nvlm export`: what was trained, as a Hugging Face folder."""

from nvlm_train.config.typed import suggestion
from nvlm_train.errors import ConfigError
from nvlm_train.verbs.base import Verb, log_to_stderr

_KEYS = ("checkpoint", "to", "part", "heads", "dtype", "shard_gb", "tokenizer", "tags.join")
_NEEDED = {"checkpoint": "a run, a stage, a step, or a folder of imported weights", "to": "a folder that does not exist yet"}
_JOIN = {"alone": False, "joined": True}


def _export(words: list[str], flags: set[str]) -> None:
    given = dict(word.partition("=")[::2] for word in words)
    problems = [f"{key}: unknown key{suggestion(key, list(_KEYS))}" for key in given if key not in _KEYS]
    problems += [f"{key}= is needed: {what}" for key, what in _NEEDED.items() if not given.get(key)]
    join = given.pop("tags.join", "alone")
    if join not in _JOIN:
        problems.append(f"tags.join={join} is unknown; it is one of {', '.join(_JOIN)}")
    size, text = 5.0, given.pop("shard_gb", "5")
    try:
        size = float(text)
    except ValueError:
        problems.append(f"shard_gb: expected a number of gigabytes, got {text!r}")
    if problems:
        raise ConfigError(problems)
    log_to_stderr()
    from nvlm_train.huggingface.export import Export, export
    print(export(Export(**given, shard_gb=size, join=_JOIN[join])))


VERBS = {
    "export": Verb(_export, "write a checkpoint as a Hugging Face folder",
                   "checkpoint=FOLDER is a run, a stage, a step, or a folder of imported weights; to=FOLDER must not exist yet.\n"
                   "part=whole|language|vision  default: the whole model (NVLM-D in NVLM-D-72B's layout), with a model card\n"
                   "heads=padded|stripped       padded: the encoder has 7 dummy heads, as released (default for NVLM-D)\n"
                   "dtype=as-is|bf16|fp32       shard_gb=5       tokenizer=FILE if the run's is no longer where it was\n"
                   "tags.join=alone|joined      how chat() of the folder tokenises tile tags: as in training, or as vLLM does\n\n"
                   "Layouts, names and limits: docs/export.md"),
}
