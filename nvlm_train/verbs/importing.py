"""`nvlm import`: a published model as weights of ours."""

from nvlm_train.config.typed import suggestion
from nvlm_train.errors import ConfigError
from nvlm_train.verbs.base import Verb, log_to_stderr

_KEYS = ("from", "to", "layers", "repository", "licence")


def _import(words: list[str], flags: set[str]) -> None:
    given = dict(word.partition("=")[::2] for word in words)
    dry = "--dry-run" in flags
    problems = [f"{key}: unknown key{suggestion(key, list(_KEYS))} (known: {', '.join(_KEYS)})"
                for key in given if key not in _KEYS]
    if not given.get("from"):
        problems.append("from= is needed: the folder of a published model, with its config.json and safetensors")
    if not given.get("to") and not dry:
        problems.append("to= is needed: a folder that does not exist yet, such as to=weights/qwen2-7b-instruct")
    layers = given.get("layers", "1")
    if not layers.isdecimal() or int(layers) < 1:
        problems.append(f"layers={layers}: expected a whole number greater than 0")
    if problems:
        raise ConfigError(problems)
    log_to_stderr()
    from nvlm_train.huggingface.import_command import Import, import_command
    asked = Import(given["from"], None if dry else given["to"], int(layers) if "layers" in given else None,
                   given.get("repository"), given.get("licence"))
    import_command(asked, as_json="--json" in flags)


VERBS = {
    "import": Verb(_import, "turn a published model into weights of ours",
                   "from=FOLDER is a Hugging Face folder (config.json, safetensors): a Qwen2 or Llama language model, an\n"
                   "InternViT, CLIP or SigLIP encoder, or a whole NVLM. from=FILE.gguf or from=package:NAME: a Llama in one file.\n"
                   "to=FOLDER must not exist yet; it is then given as model.language.weights, model.vision.weights or init.\n"
                   "layers=N takes the first N layers of an encoder (default: all, of CLIP all but one).\n"
                   "repository=ORG/NAME licence=NAME say where it comes from if the source does not.\n\n"
                   "--dry-run says what would be written, and stops. More: docs/importing.md",
                   ("--dry-run", "--json")),
}
