"""config.json of Qwen2 and Llama language models <-> our settings. What we do not implement is refused, never passed over."""

from collections.abc import Mapping
from typing import Any

from nvlm_train.config.schema import Language
from nvlm_train.errors import ConfigError
from nvlm_train.huggingface.facts import Facts

CLASSES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


def read_language(config: Mapping[str, Any], where: str = "config.json") -> Language:
    """Our settings of a language model's config.json. Raises ConfigError with every reason why it cannot be imported."""
    facts = Facts(config, where)
    family = config.get("model_type")
    if family not in CLASSES:
        raise ConfigError(f"{where}: model_type {family!r} is no language model that is implemented; {' and '.join(CLASSES)} are")
    heads, hidden = facts.size("num_attention_heads"), facts.size("hidden_size")
    language = Language(
        family=family, layers=facts.size("num_hidden_layers"), hidden=hidden, heads=heads,
        kv_heads=facts.size("num_key_value_heads", heads if family == "llama" else None),
        head_dim=_head_dim(facts, hidden, heads), ffn=facts.size("intermediate_size"), vocab=facts.size("vocab_size"),
        rope_base=_rope_base(facts),
        norm_eps=facts.number("rms_norm_eps", 1e-6), qkv_bias=family == "qwen2",
        tie_embeddings=facts.switch("tie_word_embeddings", False))
    facts.only("hidden_act", ("silu",), "silu", "the feed-forward is SwiGLU")
    facts.only("mlp_bias", (False,), False, "linears have no bias")
    if family == "llama":
        facts.only("attention_bias", (False,), False, "Llama's attention has no biases here")
    if heads % language.kv_heads:
        facts.note(f"num_key_value_heads={language.kv_heads} does not divide num_attention_heads={heads}")
    _refuse_sliding_window(facts)
    facts.check()
    return language


def _head_dim(facts: Facts, hidden: int, heads: int) -> int:
    if "head_dim" not in facts.config and hidden % heads:
        facts.note(f"num_attention_heads={heads} does not divide hidden_size={hidden}, and there is no head_dim")
    width = facts.size("head_dim", max(1, hidden // heads))
    if width % 2:
        facts.note(f"heads of {width} channels: rotary positions turn pairs of channels, so their number must be even")
    return width


def _rope_base(facts: Facts) -> float:
    """Files of transformers 5 keep it in rope_parameters, older ones beside the sizes, scaling apart in rope_scaling."""
    rope = facts.part("rope_parameters")
    for key, part in (("rope_parameters", rope), ("rope_scaling", facts.part("rope_scaling"))):
        kind = part.get("rope_type", part.get("type", "default"))
        if kind != "default":
            facts.note(f"{key} of type {kind!r} is not implemented: positions would be turned by other angles than in training")
    for key, ordinary in (("partial_rotary_factor", 1), ("rope_interleaved", False)):
        if (value := rope.get(key, facts.get(key, ordinary))) != ordinary:
            facts.note(f"{key}={value} is not implemented; {ordinary} is")
    return Facts(rope, facts.where).number("rope_theta", facts.number("rope_theta", 10000.0))


def _refuse_sliding_window(facts: Facts) -> None:
    """Qwen2 files name a window that is off; only one that is on changes what the model computes."""
    sliding = [kind for kind in facts.get("layer_types", []) if kind != "full_attention"]
    if facts.switch("use_sliding_window", False) or sliding:
        facts.note(f"a sliding window of {facts.get('sliding_window')} tokens is on, which is not implemented; attention is full")


def write_language(language: Language, max_positions: int = 32768) -> dict[str, Any]:
    """A config.json for a language model's tensors, without dtype and token ids. max_positions: the longest text it is said to
    read; no weight depends on it. Raises ConfigError for a model that its family does not have."""
    m = language
    if m.qkv_bias != (m.family == "qwen2"):
        other = "qwen2" if m.qkv_bias else "llama"
        raise ConfigError(f"model.language.qkv_bias={m.qkv_bias} with family {m.family}: Qwen2 has these biases and Llama has "
                          f"not; set model.language.family={other}")
    return {
        "architectures": [CLASSES[m.family]], "model_type": m.family,
        "num_hidden_layers": m.layers, "hidden_size": m.hidden, "intermediate_size": m.ffn, "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads, "head_dim": m.head_dim, "vocab_size": m.vocab, "rope_theta": m.rope_base,
        "rms_norm_eps": m.norm_eps, "hidden_act": "silu", "max_position_embeddings": max_positions,
        "tie_word_embeddings": m.tie_embeddings, "attention_dropout": 0.0,
        **({"use_sliding_window": False} if m.family == "qwen2" else {"attention_bias": False, "mlp_bias": False}),
    }
