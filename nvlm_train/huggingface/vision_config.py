"""config.json of InternViT, CLIP and SigLIP encoders <-> our settings. Colours come from preprocessor_config.json."""

from collections.abc import Mapping
from typing import Any

from nvlm_train.config.schema import Vision
from nvlm_train.errors import ConfigError
from nvlm_train.huggingface.facts import Facts
from nvlm_train.huggingface.names import vision_entries

# model_type -> family. CLIP's and SigLIP's two towers come in one file, the encoder's config inside.
FAMILIES = {"intern_vit_6b": "internvit", "clip_vision_model": "clip", "siglip_vision_model": "siglip"}
TWO_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}

_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_NORMS = {"rms_norm": "rms", "layer_norm": "layer"}
_COLOURS = {
    "internvit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# What the library assumes where a file is silent, which those inside two-tower files often are.
_DEFAULTS = {
    "internvit": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12, "hidden_size": 768,
             "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 224, "patch_size": 32},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_hidden_layers": 12, "hidden_size": 768,
               "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 224, "patch_size": 16},
}


def encoder_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The encoder's own part of a two-tower config.json; the whole of any other."""
    kind = config.get("model_type")
    if kind not in TWO_TOWERS:
        return config
    inside = config.get("vision_config") or {}
    return {**inside, "model_type": TWO_TOWERS[kind]}


def read_vision(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None, layers: int | None = None,
                where: str = "config.json") -> Vision:
    """Our settings of an encoder's config.json. Raises ConfigError with every reason why it cannot be imported.

    layers: how many of its layers are taken, from the first on. Default: all; of CLIP all but the last, as LLaVA and its
    successors take them: CLIP's last layer is trained for its class token only. preprocessor: preprocessor_config.json.
    A tile is as large as the pictures it was trained on, less what fills no patch (SigLIP: of 384 px in 14-px patches 378).
    """
    config = encoder_part(config)
    family = FAMILIES.get(config.get("model_type"))
    if family is None:
        raise ConfigError(f"{where}: model_type {config.get('model_type')!r} is no vision encoder that is implemented; "
                          f"{', '.join([*FAMILIES, *TWO_TOWERS])} are")
    facts = Facts({**_DEFAULTS[family], **{key: value for key, value in config.items() if value is not None}}, where)
    patch, found, heads = facts.size("patch_size"), facts.size("num_hidden_layers"), facts.size("num_attention_heads")
    layers = layers or (found - 1 if family == "clip" and found > 1 else found)
    if layers > found:
        facts.note(f"{layers} layers are asked for and the encoder has {found}")
    mean, std = _colours(facts, family, preprocessor)
    sizes = {
        "family": family, "layers": layers, "hidden": facts.size("hidden_size"), "heads": heads,
        "ffn": facts.size("intermediate_size"), "tile_size": facts.size("image_size") // patch * patch, "patch": patch,
        "norm_eps": facts.number("layer_norm_eps", 1e-6), "mean": mean, "std": std,
        "activation": _ACTIVATIONS[facts.only("hidden_act", tuple(_ACTIVATIONS), None, "an activation of another shape")]}
    vision = Vision(**sizes, **_style(facts, family))
    if vision.hidden % heads:
        facts.note(f"num_attention_heads={heads} does not divide hidden_size={vision.hidden}")
    if vision.tile_size < patch:
        facts.note(f"image_size={facts.size('image_size')} is smaller than patch_size={patch}")
    facts.only("num_channels", (3,), 3, "pictures have three colours")
    facts.check()
    return vision


def _style(facts: Facts, family: str) -> dict[str, Any]:
    if family == "internvit":
        norm = _NORMS[facts.only("norm_type", tuple(_NORMS), "rms_norm", "another kind of norm")]
        return {"norm": norm, "qkv_bias": facts.switch("qkv_bias", False), "qk_norm": facts.switch("qk_normalization", True),
                "layer_scale_init": facts.number("initializer_factor", 0.1)}
    clip = family == "clip"
    return {"norm": "layer", "qkv_bias": True, "qk_norm": False, "layer_scale": False, "first_norm": clip,
            "final_norm": not clip,     # CLIP's is for the class token alone
            "class_token": clip, "patch_bias": not clip}


def _colours(facts: Facts, family: str, preprocessor: Mapping[str, Any] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    found = []
    for key, usual in zip(("image_mean", "image_std"), _COLOURS[family], strict=True):
        values = (preprocessor or {}).get(key) or usual
        if len(values) != 3 or not all(isinstance(value, (int, float)) for value in values):
            facts.note(f"preprocessor_config.json: {key} is {values!r}, not three numbers")
            values = usual
        found.append(tuple(float(value) for value in values))
    return found[0], found[1]


def write_vision(vision: Vision) -> dict[str, Any]:
    """A config.json for an encoder's tensors, without dtype. Raises ConfigError for an encoder that its family does not have."""
    vision_entries(vision)      # has it names there?
    v = vision
    kind = next(kind for kind, family in FAMILIES.items() if family == v.family)
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == v.activation)
    style = {} if v.family != "internvit" else {
        "architectures": ["InternVisionModel"], "norm_type": next(theirs for theirs, ours in _NORMS.items() if ours == v.norm),
        "qkv_bias": v.qkv_bias, "qk_normalization": v.qk_norm, "initializer_factor": v.layer_scale_init,
        "dropout": 0.0, "drop_path_rate": 0.0, "use_flash_attn": False}
    classes = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
    return {
        **({"architectures": [classes[v.family]]} if v.family in classes else style), "model_type": kind,
        "num_hidden_layers": v.layers, "hidden_size": v.hidden, "intermediate_size": v.ffn, "num_attention_heads": v.heads,
        "image_size": v.tile_size, "patch_size": v.patch, "num_channels": 3, "layer_norm_eps": v.norm_eps,
        "hidden_act": activation, "attention_dropout": 0.0,
    }


def write_preprocessor(vision: Vision) -> dict[str, Any]:
    """A preprocessor_config.json: one tile's size and colours (tiling itself is the model's business)."""
    side = {"height": vision.tile_size, "width": vision.tile_size}
    return {"image_processor_type": "SiglipImageProcessor" if vision.family == "siglip" else "CLIPImageProcessor",
            "do_resize": True, "size": side, "crop_size": side, "do_center_crop": False, "do_rescale": True,
            "do_normalize": True, "do_convert_rgb": True, "resample": 3,
            "image_mean": list(vision.mean), "image_std": list(vision.std)}
