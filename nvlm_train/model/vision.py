"""InternViT on Megatron's parallel layers (paper section 4.1): 6B style and 300M style differ by settings only.

6B: RMSNorm, QK norm over the full width, LayerScale, no QKV bias. 300M: LayerNorm, QKV bias, no QK norm. Neither has a final
norm. Heads that tensor parallelism does not divide are padded with dummy heads whose weights are zero and stay zero
(25 heads become 32 at tensor-parallel size 8, as in the released weights).

Shapes: n tiles, L = 1 + patches tokens a tile, C width. Tensor parallel only: a tile is short, so the sequence is not split.
"""

import math

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint
from torch import Tensor, nn

from nvlm_train.config.schema import Vision
from nvlm_train.model.norm import NORMS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def padded_heads(heads: int, tensor: int) -> int:
    """Heads after adding dummies, so that `tensor` ranks hold equally many."""
    return math.ceil(heads / tensor) * tensor


def _mark_padded(param: nn.Parameter, dim: int, real: int) -> None:
    """Say that only the first `real` entries of the unsharded dimension exist: initialisation zeroes the rest, and a
    checkpoint of another tensor-parallel size (with another padding) may be loaded."""
    param.unpadded = (dim, real)


class WideRMSNorm(nn.Module):
    """RMSNorm of queries or keys over all heads together, each rank holding its own heads' weights.

    The mean square runs over the *real* width (3,200 in the 6B encoder), never over the padded one, and its gradient is
    summed over the ranks, so that an unfrozen encoder trains correctly too.
    """

    def __init__(self, config, real_width: int, local_width: int, eps: float):
        super().__init__()
        self.real_width, self.eps = real_width, eps
        self.weight = nn.Parameter(torch.ones(local_width, dtype=config.params_dtype, device=torch.cuda.current_device()))
        self.weight.tensor_model_parallel, self.weight.partition_dim, self.weight.partition_stride = True, 0, 1
        _mark_padded(self.weight, 0, real_width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., local_width] -> the same."""
        square = x.float().square().sum(-1, keepdim=True)
        # Summed forward *and* backward: every rank's output depends on every rank's input.
        square = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(square))
        return (x.float() * torch.rsqrt(square / self.real_width + self.eps)).to(x.dtype) * self.weight

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        name = f"{prefix}weight"
        return {name: make_tp_sharded_tensor_for_checkpoint(self.weight, name, tp_axis=0, allow_shape_mismatch=True)}


class VisionAttention(MegatronModule):
    """Bidirectional self-attention of one tile. Weights are stored head by head as [q, k, v]."""

    def __init__(self, config, vision: Vision):
        super().__init__(config)
        tensor = config.tensor_model_parallel_size
        self.head_dim = vision.hidden // vision.heads
        heads = padded_heads(vision.heads, tensor)
        self.heads, width, real = heads // tensor, heads * self.head_dim, vision.heads * self.head_dim
        common = {"config": config, "init_method": config.init_method, "skip_bias_add": False}
        self.linear_qkv = ColumnParallelLinear(vision.hidden, 3 * width, bias=vision.qkv_bias, gather_output=False, **common)
        self.linear_proj = RowParallelLinear(width, vision.hidden, bias=True, input_is_parallel=True, **common)
        _mark_padded(self.linear_qkv.weight, 0, 3 * real)
        _mark_padded(self.linear_proj.weight, 1, real)
        if vision.qkv_bias:
            _mark_padded(self.linear_qkv.bias, 0, 3 * real)
        self.qk_norm = vision.qk_norm
        if vision.qk_norm:
            self.q_norm = WideRMSNorm(config, real, self.heads * self.head_dim, vision.norm_eps)
            self.k_norm = WideRMSNorm(config, real, self.heads * self.head_dim, vision.norm_eps)

    def forward(self, x_nLC: Tensor) -> Tensor:
        qkv = self.linear_qkv(x_nLC)[0].unflatten(-1, (self.heads, 3, self.head_dim))
        q, k, v = qkv.unbind(-2)
        if self.qk_norm:
            q, k = (norm(y.flatten(-2)).unflatten(-1, (self.heads, self.head_dim)) for norm, y in ((self.q_norm, q), (self.k_norm, k)))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.linear_proj(out.transpose(1, 2).flatten(-2))[0]

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for name in ("linear_qkv.weight", "linear_qkv.bias", "linear_proj.weight"):
            if prefix + name in state:  # the padding differs from one tensor-parallel size to another
                state[prefix + name].allow_shape_mismatch = True
        return state


class VisionLayer(MegatronModule):
    """Pre-norm attention and MLP, each branch scaled by LayerScale before it is added."""

    def __init__(self, config, vision: Vision):
        super().__init__(config)
        norm = NORMS[vision.norm]
        self.norm1, self.norm2 = (norm(config, vision.hidden, vision.norm_eps) for _ in range(2))
        self.attention = VisionAttention(config, vision)
        common = {"config": config, "init_method": config.init_method, "bias": True, "skip_bias_add": False}
        self.linear_fc1 = ColumnParallelLinear(vision.hidden, vision.ffn, gather_output=False, **common)
        self.linear_fc2 = RowParallelLinear(vision.ffn, vision.hidden, input_is_parallel=True, **common)
        self.layer_scale = vision.layer_scale
        if vision.layer_scale:
            place = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
            self.ls1, self.ls2 = (nn.Parameter(torch.full((vision.hidden,), vision.layer_scale_init, **place)) for _ in range(2))

    def forward(self, x_nLC: Tensor) -> Tensor:
        branch = self.attention(self.norm1(x_nLC))
        x_nLC = x_nLC + (branch * self.ls1 if self.layer_scale else branch)
        branch = self.linear_fc2(F.gelu(self.linear_fc1(self.norm2(x_nLC))[0]))[0]
        return x_nLC + (branch * self.ls2 if self.layer_scale else branch)


class Layers(nn.ModuleList):
    """A module list that lets each layer describe its own sharding (Megatron takes a plain list for replicated)."""

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        state = {}
        for number, layer in enumerate(self):
            state.update(layer.sharded_state_dict(f"{prefix}{number}.", sharded_offsets, metadata))
        return state


class VisionEncoder(MegatronModule):
    """uint8 tiles in, patch features out; the class token is dropped, the last layer's output is the feature."""

    def __init__(self, config, vision: Vision):
        super().__init__(config)
        place = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
        self.patch = vision.patch
        patches = (vision.tile_size // vision.patch) ** 2
        self.patch_weight = nn.Parameter(torch.empty(vision.hidden, 3, vision.patch, vision.patch, **place))
        self.patch_bias = nn.Parameter(torch.zeros(vision.hidden, **place))
        self.class_token = nn.Parameter(torch.empty(1, 1, vision.hidden, **place))
        self.position = nn.Parameter(torch.empty(1, 1 + patches, vision.hidden, **place))
        self.layers = Layers(VisionLayer(config, vision) for _ in range(vision.layers))
        self.final_norm = NORMS[vision.norm](config, vision.hidden, vision.norm_eps) if vision.final_norm else None
        pixels = {"dtype": torch.float32, "device": torch.cuda.current_device()}
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN, **pixels).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD, **pixels).view(1, 3, 1, 1), persistent=False)

    def forward(self, tiles_nCPP: Tensor) -> Tensor:
        """uint8 [n, 3, P, P] -> [n, patches, C]. n may be 0. Runs without autograd when the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())):
            planes = tiles_nCPP.to(torch.float32, memory_format=torch.contiguous_format)     # colours come interleaved
            pixels = ((planes - self.mean) / self.std).to(self.patch_weight.dtype)
            x = F.conv2d(pixels, self.patch_weight, self.patch_bias, stride=self.patch).flatten(2).transpose(1, 2)
            x = torch.cat((self.class_token.expand(len(x), -1, -1), x), 1) + self.position
            for layer in self.layers:
                x = layer(x)
            if self.final_norm is not None:
                x = self.final_norm(x)
            return x[:, 1:]
