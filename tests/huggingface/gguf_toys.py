"""A llama of a few thousand parameters as a GGUF file, written by the `gguf` package."""

import gguf
import numpy as np

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN = 2, 64, 4, 2, 96
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo>", "<empty_output>")


def vocabulary() -> tuple[list[str], list[str]]:
    """(tokens, merges): the control tokens, the visible ASCII characters with the byte alphabet's space, and three merges."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    merges = ["Ġ t", "Ġt h", "Ġ Ġ"]
    return [*CONTROL, *letters, *("".join(merge.split()) for merge in merges)], merges


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Published name -> float32 values, of a model with tied embeddings."""
    random, width = np.random.default_rng(seed), HIDDEN // HEADS
    rows = {"self_attn.q_proj": HIDDEN, "self_attn.k_proj": KV_HEADS * width, "self_attn.v_proj": KV_HEADS * width,
            "self_attn.o_proj": HIDDEN, "mlp.gate_proj": FFN, "mlp.up_proj": FFN}
    shapes = {"model.embed_tokens.weight": (len(vocabulary()[0]), HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}.weight": (count, HIDDEN) for name, count in rows.items()}
        shapes |= {f"model.layers.{i}.mlp.down_proj.weight": (HIDDEN, FFN), f"model.layers.{i}.input_layernorm.weight": (HIDDEN,),
                   f"model.layers.{i}.post_attention_layernorm.weight": (HIDDEN,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def llama_cpp_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q_proj and k_proj: channel i of a head's first half comes before channel i of its second."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def write(path, kind=gguf.GGMLQuantizationType.F32, architecture="llama", pre="smollm", extra=None, more=None) -> None:
    """extra: further settings of whole numbers or texts. more: further tensors, under the file's names."""
    tokens, merges = vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value) if isinstance(value, int) else writer.add_string(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, values in tensors().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = llama_cpp_order(values, HEADS if "q_proj" in name else KV_HEADS)
        stored = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(names.get_name(name, (".weight",)), gguf.quantize(values, stored), raw_dtype=stored)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
