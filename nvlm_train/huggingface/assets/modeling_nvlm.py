"""NVLM-D, NVLM-X and NVLM-H (arXiv 2409.11402) on transformers' Qwen2 and Llama: for asking, not for training.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model.chat(tokenizer, ["cat.png"], "What is this?")

Parts and names of the public NVLM-D-72B: `vision_model`, `mlp1`, `language_model`; NVLM-X and NVLM-H have gated cross-attention
in some of the language model's layers. Shapes: n tiles, L tokens of a tile in the encoder, t in the language model, T tokens
of the sequence, m memory tiles, M tokens of the memory, H the language model's width.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from .configuration_nvlm import NVLM_D_Config, NVLM_H_Config, NVLM_X_Config
from .processing_nvlm import NvlmProcessor
from .vision_nvlm import vision_tower


def pixel_shuffle(x, side):
    """[n, L, C] -> [n, L / side^2, side^2 * C]: blocks left to right, top to bottom; rows of a block likewise (`v2`)."""
    n, patches, width = x.shape
    grid = int(patches**0.5)
    blocks = x.view(n, grid // side, side, grid // side, side, width).transpose(2, 3)
    return blocks.reshape(n, (grid // side) ** 2, side * side * width)


def projector(config):
    """`mlp1`: LayerNorm, then one (NVLM-X) or two linears without bias."""
    settings, language = getattr(config, "connector_config", None) or {}, config.llm_config
    wide = config.vision_config.hidden_size * round(1 / config.downsample_ratio) ** 2
    parts = [nn.LayerNorm(wide, eps=settings.get("norm_eps", 1e-5))]
    if settings.get("layers", 1 if config.model_type == "NVLM_X" else 2) == 1:
        return nn.Sequential(*parts, nn.Linear(wide, language.hidden_size, bias=False))
    inner = settings.get("hidden", language.intermediate_size)
    parts += [nn.Linear(wide, inner, bias=False), nn.GELU(), nn.Linear(inner, language.hidden_size, bias=False)]
    return nn.Sequential(*parts)


class GatedCrossAttention(nn.Module):
    """[1, T, H] reads the memory, times tanh(gate). No positions. A token that may read nothing gets 0."""

    def __init__(self, language, settings):
        super().__init__()
        width = getattr(language, "head_dim", None) or language.hidden_size // language.num_attention_heads
        self.shape = (-1, width)
        inner, grouped = settings["heads"] * width, settings["kv_heads"] * width
        self.q_proj = nn.Linear(language.hidden_size, inner, bias=False)
        self.o_proj = nn.Linear(inner, language.hidden_size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(language.hidden_size, grouped, bias=False) for _ in range(2))
        if settings["qk_norm"]:
            self.q_norm, self.k_norm = (LlamaRMSNorm(width, eps=language.rms_norm_eps) for _ in range(2))
        self.qk_norm, self.gate = settings["qk_norm"], nn.Parameter(torch.zeros(1))
        self.memory = None

    def remember(self, memory, mask):
        """memory: [M, H] or None. mask: bool [T, M], what each token of the prompt reads; later ones read as the last does."""
        self.memory = None
        if memory is not None:
            k, v = (linear(memory).unflatten(-1, self.shape).transpose(0, 1)[None] for linear in (self.k_proj, self.v_proj))
            self.memory = (self.k_norm(k) if self.qk_norm else k), v, mask

    def forward(self, x, positions):
        """positions: [1, T] of the tokens in the sequence."""
        if self.memory is None:
            return torch.zeros_like(x)
        k, v, mask = self.memory
        mask = mask[positions[0].clamp(max=len(mask) - 1)]
        reading = mask.any(-1, keepdim=True)
        q = self.q_proj(x).unflatten(-1, self.shape).transpose(1, 2)
        q = self.q_norm(q) if self.qk_norm else q
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~reading, enable_gqa=True).transpose(1, 2).flatten(-2)
        return self.o_proj(out * reading) * torch.tanh(self.gate)


class GatedMLP(nn.Module):
    """A feed-forward behind cross-attention, times tanh(gate) (Flamingo's layer has one, NVLM's has not)."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj, self.gate = nn.Linear(inner, width, bias=False), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)) * torch.tanh(self.gate)


class _Reading:
    """A decoder layer with gated cross-attention between self-attention and feed-forward (the paper's Figure 3)."""

    def add_cross_attention(self, language, settings):
        self.cross_attn_layernorm = LlamaRMSNorm(language.hidden_size, eps=language.rms_norm_eps)
        self.cross_attn, self.cross_mlp = GatedCrossAttention(language, settings), None
        if settings["ffn"]:
            self.cross_mlp_layernorm = LlamaRMSNorm(language.hidden_size, eps=language.rms_norm_eps)
            self.cross_mlp = GatedMLP(language.hidden_size, settings["ffn"])
        return self

    def forward(self, hidden_states, *args, position_ids=None, **rest):
        x = hidden_states + self.self_attn(self.input_layernorm(hidden_states), *args, position_ids=position_ids, **rest)[0]
        x = x + self.cross_attn(self.cross_attn_layernorm(x), position_ids)
        if self.cross_mlp is not None:
            x = x + self.cross_mlp(self.cross_mlp_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class ReadingQwen2Layer(_Reading, Qwen2DecoderLayer):
    pass


class ReadingLlamaLayer(_Reading, LlamaDecoderLayer):
    pass


class NvlmModel(PreTrainedModel):
    """`forward` and `generate` take what `NvlmProcessor.prepare` gives; `chat` does it all. One conversation at a time."""

    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules: ClassVar = ["InternVisionLayer", "Qwen2DecoderLayer", "LlamaDecoderLayer", "ReadingQwen2Layer",
                                   "ReadingLlamaLayer"]

    def __init__(self, config):
        super().__init__(config)
        language = config.llm_config
        self.vision_model, self.mlp1 = vision_tower(config.vision_config), projector(config)
        self.language_model = AutoModelForCausalLM.from_config(language)
        settings = getattr(config, "cross_attention_config", None) or {"layers": ()}
        kind = {"qwen2": ReadingQwen2Layer, "llama": ReadingLlamaLayer}[language.model_type]
        for number in settings["layers"]:
            layer = kind(self.language_model.config, number).add_cross_attention(language, settings)
            self.language_model.model.layers[number] = layer
        self.readers = settings["layers"]
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def see(self, pixel_values):
        """[n, 3, P, P] -> [n, t, H]"""
        features = self.vision_model(pixel_values.to(self.device, self.mlp1[0].weight.dtype))
        return self.mlp1(pixel_shuffle(features, round(1 / self.config.downsample_ratio)))

    def embed(self, input_ids, pixel_values=None, in_memory=None, reads=None, memory_tags=None):
        """The sequence's embeddings [1, T, H], the pictures put in where they belong; hands cross-attention its memory."""
        if len(input_ids) != 1:
            raise ValueError(f"one conversation at a time, {len(input_ids)} were given")
        input_ids = input_ids.to(self.device)
        hidden, memory, mask = self.get_input_embeddings()(input_ids), None, None
        if pixel_values is not None:
            tiles = self.see(pixel_values)
            if in_memory is not None:
                kept, tiles = tiles[in_memory.to(self.device)], tiles[~in_memory.to(self.device)]
                memory, mask = self._memory(kept, reads.to(self.device), memory_tags.to(self.device))
            places = (input_ids == self.config.image_token_id)[..., None]
            if int(places.sum()) != tiles.shape[0] * tiles.shape[1]:
                raise ValueError(f"{int(places.sum())} image tokens in the sequence, and {len(tiles)} tiles of {tiles.shape[1]}")
            hidden = hidden.masked_scatter(places, tiles.to(hidden.dtype))
        for number in self.readers:
            self.language_model.model.layers[number].cross_attn.remember(memory, mask)
        return hidden

    def _memory(self, tiles, reads, tags):
        """[m, t, H], bool [T, m], ids [m, G] padded with -1 -> memory [M, H], each tile behind its tag, and mask [T, M]."""
        tags = [self.get_input_embeddings()(tag[tag >= 0]) for tag in tags]
        pieces = [torch.cat((tag.to(tile.dtype), tile)) for tag, tile in zip(tags, tiles)]
        lengths = torch.tensor([len(piece) for piece in pieces], device=reads.device)
        return torch.cat(pieces), reads.repeat_interleave(lengths, 1)

    def forward(self, input_ids, pixel_values=None, in_memory=None, reads=None, memory_tags=None, **rest):
        """Logits [1, T, V] and what else transformers' language model returns. Arguments: see `NvlmProcessor.prepare`."""
        return self.language_model(inputs_embeds=self.embed(input_ids, pixel_values, in_memory, reads, memory_tags), **rest)

    @torch.no_grad()
    def generate(self, input_ids, pixel_values=None, in_memory=None, reads=None, memory_tags=None, **rest):
        """The new tokens [1, k]; further arguments are those of transformers' `generate`."""
        hidden = self.embed(input_ids, pixel_values, in_memory, reads, memory_tags)
        seen = torch.ones(hidden.shape[:2], dtype=torch.long, device=self.device)
        return self.language_model.generate(inputs_embeds=hidden, attention_mask=seen, **rest)

    def chat(self, tokenizer, images, question, history=(), system=None, max_new_tokens=512, **rest):
        """The greedy answer to a question. images: paths or Pillow pictures, () for text alone. history: earlier (question,
        answer) pairs. rest: of transformers' `generate`."""
        ready = NvlmProcessor(self.config, tokenizer).prepare(question, images, history, system)
        spare = list(range(len(tokenizer), self.config.llm_config.vocab_size))      # rows that stand for no token
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, "suppress_tokens": spare or None,
                   "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **rest}
        return tokenizer.decode(self.generate(**ready, **options)[0], skip_special_tokens=True).strip()


class NVLM_D(NvlmModel):
    config_class = NVLM_D_Config


class NVLM_X(NvlmModel):
    config_class = NVLM_X_Config


class NVLM_H(NvlmModel):
    config_class = NVLM_H_Config
