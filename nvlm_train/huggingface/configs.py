"""config.json of whole models <-> our settings, and which kind of model a config.json describes.

NVLM-D's is that of the published NVLM-D-72B. NVLM-X's and NVLM-H's add `connector_config` and `cross_attention_config`, which
nobody has published (docs/export.md); an NVLM-D whose connector is not the published one has the first of them too.
"""

from collections.abc import Mapping
from typing import Any

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import Connector, CrossAttention, Model, Vision
from nvlm_train.config.typed import build, suggestion
from nvlm_train.engine.weights_folder import Sizes
from nvlm_train.errors import ConfigError
from nvlm_train.huggingface.facts import Facts
from nvlm_train.huggingface.language_config import CLASSES, read_language, write_language
from nvlm_train.huggingface.vision_config import FAMILIES, TWO_TOWERS, read_vision, write_vision

WHOLE = {"NVLM_D": "nvlm_d", "NVLM_X": "nvlm_x", "NVLM_H": "nvlm_h"}


def read_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None, layers: int | None = None) -> Sizes:
    """What a config.json describes. layers: of an encoder alone, as for `read_vision`. Raises ConfigError."""
    kind = config.get("model_type")
    known = [*CLASSES, *FAMILIES, *TWO_TOWERS, *WHOLE]
    if kind not in known:
        near = suggestion(kind, known) if isinstance(kind, str) else ""
        raise ConfigError(f"config.json: model_type {kind!r} is of no family that is implemented{near} "
                          f"(known: {', '.join(known)})")
    if layers is not None and kind not in {*FAMILIES, *TWO_TOWERS}:
        raise ConfigError(f"layers={layers} takes the first layers of a vision encoder, and this is a {kind}")
    if kind in CLASSES:
        return Sizes(language=read_language(config))
    if kind not in WHOLE:
        return Sizes(vision=read_vision(config, preprocessor, layers))
    return _read_whole(config, WHOLE[kind], preprocessor)


def _read_whole(config: Mapping[str, Any], architecture: str, preprocessor: Mapping[str, Any] | None) -> Sizes:
    facts, problems, parts = Facts(config, "config.json"), [], {}
    towers = {"language": lambda: read_language(facts.part("llm_config"), "config.json, llm_config"),
              "vision": lambda: _encoder_of(facts, preprocessor)}
    for name, read in towers.items():
        try:
            parts[name] = read()
        except ConfigError as error:
            problems += error.problems
    facts.only("ps_version", ("v2",), "v1", "another order of the pixels that a token is made of")
    facts.only("select_layer", (-1,), -1, "features are taken from the last layer")
    ratio = facts.number("downsample_ratio", 0.5)
    shuffle = round(1 / ratio) if 0 < ratio <= 1 else 0
    if not shuffle or abs(1 / shuffle - ratio) > 1e-6:
        facts.note(f"downsample_ratio={ratio} is no pixel shuffle: its inverse has to be a whole number")
    if problems := [*problems, *facts.problems]:
        raise ConfigError(problems)
    if (size := facts.size("force_image_size", parts["vision"].tile_size)) != parts["vision"].tile_size:
        facts.note(f"force_image_size={size}, but the encoder's pictures have {parts['vision'].tile_size} px: positions would "
                   "have to be interpolated, which is not implemented")
    facts.check()
    derived = {"shuffle": shuffle, "layers": 1 if architecture == "nvlm_x" else 2}
    connector = _settings(Connector, facts.part("connector_config"), derived)
    cross = None if architecture == "nvlm_d" else _settings(CrossAttention, facts.part("cross_attention_config"), {})
    return Sizes(architecture, parts["vision"], connector, cross, parts["language"])


def _encoder_of(facts: Facts, preprocessor: Mapping[str, Any] | None) -> Vision:
    config = facts.part("vision_config")
    found = config.get("num_hidden_layers")
    # A model's encoder has the layers that the model uses, whichever family it is of.
    layers = found if isinstance(found, int) and found > 0 else None
    return read_vision(config, preprocessor, layers, "config.json, vision_config")


def _settings(kind: type, given: Mapping[str, Any], derived: Mapping[str, Any]) -> Any:
    if "weights" in given:
        raise ConfigError("config.json: weights is refused in it: a file does not say from where others are read")
    return build(kind, {**derived, **given})


def write_config(model: Model, max_positions: int = 32768) -> dict[str, Any]:
    """config.json of a whole model: what follows from its settings. Raises ConfigError for parts that no layout has."""
    kind = next(theirs for theirs, ours in WHOLE.items() if ours == model.architecture)
    connector, cross = _written_connector(model), _written_cross(model)
    return {
        "architectures": [kind], "model_type": kind, "vision_config": write_vision(model.vision),
        "llm_config": write_language(model.language, max_positions), "select_layer": -1,
        "force_image_size": model.vision.tile_size, "downsample_ratio": 1 / model.connector.shuffle, "ps_version": "v2",
        **({"connector_config": connector} if connector else {}), **({"cross_attention_config": cross} if cross else {}),
    }


def _written_connector(model: Model) -> dict[str, Any]:
    """What differs from the connector that the architecture is published (or, for X and H, described) with."""
    plain = Connector(layers=1 if model.architecture == "nvlm_x" else 2)
    inner = None if model.connector.hidden == model.language.ffn else model.connector.hidden
    mine = {"layers": model.connector.layers, "hidden": inner, "norm_eps": model.connector.norm_eps}
    return {name: value for name, value in mine.items() if value != getattr(plain, name)}


def _written_cross(model: Model) -> dict[str, Any]:
    """Everything, with nothing left to be derived; {} for NVLM-D."""
    cross, m = model.cross_attention, model.language
    if model.architecture == "nvlm_d":
        return {}
    return {"layers": list(cross_layers(model)), "heads": cross.heads or m.heads, "kv_heads": cross.kv_heads or m.kv_heads,
            "qk_norm": cross.qk_norm, "ffn": cross.ffn, "tag_mask": cross.tag_mask}
