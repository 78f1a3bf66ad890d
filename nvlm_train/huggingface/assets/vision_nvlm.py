"""Encoders of tiles: InternViT (both styles) of our own, CLIP and SigLIP of transformers. [n, 3, P, P] -> [n, L, C], without
class token."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionModel, SiglipVisionModel
from transformers.activations import ACT2FN


class RMSNorm(nn.Module):
    """real: the mean square runs over these first channels only; the rest, of dummy heads, are zeros."""

    def __init__(self, width, eps, real=None):
        super().__init__()
        self.weight, self.eps, self.real = nn.Parameter(torch.ones(width)), eps, real or width

    def forward(self, x):
        square = x.float().square().sum(-1, keepdim=True) / self.real
        return (x.float() * torch.rsqrt(square + self.eps)).to(x.dtype) * self.weight


class InternVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + (config.image_size // patch) ** 2, width))

    def forward(self, pixels):
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return torch.cat((self.class_embedding.expand(len(pixels), -1, -1), patches), 1) + self.position_embedding


class InternAttention(nn.Module):
    """Dummy heads, if there are some, have zero weights: they let 25 heads be shared out over 8 devices, and change nothing."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        inner = width + getattr(config, "num_dummy_heads", 0) * self.head_dim
        self.qkv, self.proj = nn.Linear(width, 3 * inner, bias=config.qkv_bias), nn.Linear(inner, width)
        self.qk_norm = config.qk_normalization
        if self.qk_norm:    # over all heads together
            self.q_norm, self.k_norm = (RMSNorm(inner, config.layer_norm_eps, width) for _ in range(2))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = (self.q_norm(q), self.k_norm(k)) if self.qk_norm else (q, k)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (q, k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class InternMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2, self.activation = nn.Linear(config.intermediate_size, config.hidden_size), ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class InternVisionLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        norm = {"rms_norm": RMSNorm, "layer_norm": nn.LayerNorm}[config.norm_type]
        self.norm1, self.norm2 = (norm(config.hidden_size, config.layer_norm_eps) for _ in range(2))
        self.attn, self.mlp = InternAttention(config), InternMLP(config)
        self.ls1, self.ls2 = (nn.Parameter(torch.ones(config.hidden_size)) for _ in range(2))

    def forward(self, x):
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class InternVisionModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embeddings, self.encoder = InternVisionEmbeddings(config), nn.Module()
        self.encoder.layers = nn.ModuleList(InternVisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, pixels):
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


class ClipTower(CLIPVisionModel):
    """The layers of transformers' CLIP encoder. Its last norm is for its class token alone, and not used."""

    def __init__(self, config):
        super().__init__(config)
        self.post_layernorm = nn.Identity()

    def forward(self, pixels):
        return self.encoder(inputs_embeds=self.pre_layrnorm(self.embeddings(pixels))).last_hidden_state[:, 1:]


class SiglipTower(SiglipVisionModel):
    """transformers' SigLIP encoder without its head."""

    def forward(self, pixels):
        return self.post_layernorm(self.encoder(inputs_embeds=self.embeddings(pixels)).last_hidden_state)


def vision_tower(config):
    """The encoder that `vision_config` describes."""
    towers = {"intern_vit_6b": InternVisionModel, "clip_vision_model": ClipTower, "siglip_vision_model": SiglipTower}
    return towers[config.model_type](config)
