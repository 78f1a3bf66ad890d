"""A layer of the vision encoder on Megatron's parallel layers: pre-norm attention in both directions and a feed-forward.

One layer serves InternViT (paper section 4.1), CLIP and SigLIP; they differ by settings. Shapes: n tiles, L tokens a tile, C width.
Tensor parallel only: a tile is short, so the sequence is not split. Heads are padded to a multiple of the tensor-parallel size.
group: the ranks that weights are split over, None for Megatron's tensor-parallel ones.
"""

import torch
import torch.distributed as dist
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
from nvlm_train.config.split import padded_size
from nvlm_train.model.norm import NORMS
from nvlm_train.model.padding import mark
from nvlm_train.model.vision_frozen import frozen_layer


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation that CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh form, SigLIP's."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu, "gelu_tanh": gelu_tanh}


class WideRMSNorm(nn.Module):
    """RMSNorm of queries or keys over all heads together, each rank holding its own heads' weights.

    The mean square runs over the *real* width (3,200 in the 6B encoder), never over the padded one, and its gradient is
    summed over the ranks, so that an unfrozen encoder trains correctly too.
    """

    def __init__(self, config, real_width: int, local_width: int, eps: float, group: dist.ProcessGroup | None = None):
        super().__init__()
        self.real_width, self.eps, self.group = real_width, eps, group
        self.weight = nn.Parameter(torch.ones(local_width, dtype=config.params_dtype, device=torch.cuda.current_device()))
        self.weight.tensor_model_parallel, self.weight.partition_dim, self.weight.partition_stride = True, 0, 1
        mark(self.weight, 0, real_width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., local_width] -> the same."""
        square = x.float().square().sum(-1, keepdim=True)
        # Summed forward *and* backward: every rank's output depends on every rank's input.
        square = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(square, self.group), self.group)
        return (x.float() * torch.rsqrt(square / self.real_width + self.eps)).to(x.dtype) * self.weight

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        name = f"{prefix}weight"
        groups = {} if self.group is None else {"tp_group": self.group, "dp_cp_group": metadata["dp_cp_group"]}
        return {name: make_tp_sharded_tensor_for_checkpoint(self.weight, name, tp_axis=0, **groups)}


class VisionAttention(MegatronModule):
    """Bidirectional self-attention of one tile. Weights are stored head by head as [q, k, v]."""

    def __init__(self, config, vision: Vision, group: dist.ProcessGroup | None = None):
        super().__init__(config)
        tensor = config.tensor_model_parallel_size
        self.head_dim = vision.hidden // vision.heads
        heads = padded_size(vision.heads, tensor)
        self.heads, width, real = heads // tensor, heads * self.head_dim, vision.heads * self.head_dim
        common = {"config": config, "init_method": config.init_method, "skip_bias_add": False, "tp_group": group}
        self.linear_qkv = ColumnParallelLinear(vision.hidden, 3 * width, bias=vision.qkv_bias, gather_output=False, **common)
        self.linear_proj = RowParallelLinear(width, vision.hidden, bias=True, input_is_parallel=True, **common)
        mark(self.linear_qkv.weight, 0, 3 * real)
        mark(self.linear_proj.weight, 1, real)
        if vision.qkv_bias:
            mark(self.linear_qkv.bias, 0, 3 * real)
        self.qk_norm = vision.qk_norm
        if vision.qk_norm:
            self.q_norm = WideRMSNorm(config, real, self.heads * self.head_dim, vision.norm_eps, group)
            self.k_norm = WideRMSNorm(config, real, self.heads * self.head_dim, vision.norm_eps, group)

    def forward(self, x_nLC: Tensor) -> Tensor:
        qkv = self.linear_qkv(x_nLC)[0].unflatten(-1, (self.heads, 3, self.head_dim))
        q, k, v = qkv.unbind(-2)
        if self.qk_norm:
            q, k = (norm(y.flatten(-2)).unflatten(-1, (self.heads, self.head_dim)) for norm, y in ((self.q_norm, q), (self.k_norm, k)))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.linear_proj(out.transpose(1, 2).flatten(-2))[0]


class VisionLayer(MegatronModule):
    """Pre-norm attention and MLP, each branch scaled by LayerScale (InternViT) before it is added."""

    def __init__(self, config, vision: Vision, group: dist.ProcessGroup | None = None):
        super().__init__(config)
        norm = NORMS[vision.norm]
        self.norm1, self.norm2 = (norm(config, vision.hidden, vision.norm_eps) for _ in range(2))
        self.attention = VisionAttention(config, vision, group)
        common = {"config": config, "init_method": config.init_method, "bias": True, "skip_bias_add": False, "tp_group": group}
        self.linear_fc1 = ColumnParallelLinear(vision.hidden, vision.ffn, gather_output=False, **common)
        self.linear_fc2 = RowParallelLinear(vision.ffn, vision.hidden, input_is_parallel=True, **common)
        self.activation = ACTIVATIONS[vision.activation]
        self.layer_scale = vision.layer_scale
        if vision.layer_scale:
            place = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
            self.ls1, self.ls2 = (nn.Parameter(torch.full((vision.hidden,), vision.layer_scale_init, **place)) for _ in range(2))

    def forward(self, x_nLC: Tensor, compiled: bool = False) -> Tensor:
        """compiled: of a frozen layer without autograd only (`vision_frozen`)."""
        if compiled:
            return frozen_layer(self, x_nLC)
        branch = self.attention(self.norm1(x_nLC))
        x_nLC = x_nLC + (branch * self.ls1 if self.layer_scale else branch)
        branch = self.linear_fc2(self.activation(self.linear_fc1(self.norm2(x_nLC))[0]))[0]
        return x_nLC + (branch * self.ls2 if self.layer_scale else branch)
