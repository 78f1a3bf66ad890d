"""What vLLM's NVLM_D asks of a folder beyond the public layout's names, as its source says (0.33; it was not run here)."""

from nvlm_train.config.schema import Connector
from nvlm_train.huggingface.export_files import Folder, image_token

PAD = "<|vision_pad|>"


def vllm_obstacles(folder: Folder) -> list[str]:
    """Why vLLM's NVLM_D would not load this folder, or would compute something else; empty if nothing is known against it."""
    run, found = folder.source.run, []
    model, connector = run.model, run.model.connector
    if model.architecture != "nvlm_d":
        return [f"it has no {model.architecture}; the modelling file in the folder runs it"]
    if model.vision.family != "internvit":
        found.append(f"its encoder is InternViT, this one is of family {model.vision.family}")
    elif folder.dummy_heads != 7:
        found.append("it builds the encoder with 7 dummy heads, whatever their number in the files: heads=padded writes them")
    if model.language.family != "qwen2":
        found.append("versions with a configuration class of their own read llm_config as Qwen2's, this one is "
                     f"{model.language.family}'s")
    if (connector.hidden or model.language.ffn) != model.language.ffn or connector.layers != 2:
        found.append(f"its projector is two linears with {model.language.ffn} between them (the language model's ffn), this one "
                     f"has {connector.layers} with {connector.hidden or model.language.ffn}")
    if connector.norm_eps != Connector.norm_eps:
        found.append(f"the projector's LayerNorm has eps {Connector.norm_eps:g} there, and {connector.norm_eps:g} here")
    if (token := image_token(folder.tokenizer)) != PAD:
        found.append(f"its placeholder is {PAD}, the tokenizer's is {token}")
    if model.tags.kind != "1d" or model.tags.global_name != "tile_global_thumbnail":
        found.append(f"it writes 1-D tags and <tile_global_thumbnail>, this model was trained with {model.tags.kind} and "
                     f"<{model.tags.global_name}>")
    if not run.data.thumbnail:
        found.append("without a thumbnail it gives a picture one tag less than tiles")
    return found
