"""RMSNorm and LayerNorm that allow sequence parallelism (Megatron's own local norm refuses it).

Under sequence parallelism each tensor-parallel rank normalises its own slice of the sequence, so the weight's gradient is
partial: the parameter carries Megatron's `sequence_parallel` mark and its gradient is summed over the group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension. Megatron's layer-norm builder signature."""

    def __init__(self, config, hidden_size: int, eps: float = 1e-6, **_):
        super().__init__()
        self.eps, self.width = eps, hidden_size
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device()))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), self.weight, self.eps)


class ApexRMSNorm(RMSNorm):
    """The same on apex's kernel (apex.normalization.FusedRMSNorm's function), which computes in fp32 and rounds once."""

    def __init__(self, config, hidden_size: int, eps: float = 1e-6, **_):
        super().__init__(config, hidden_size, eps)
        from apex.normalization.fused_layer_norm import fused_rms_norm_affine

        self.kernel = fused_rms_norm_affine

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x, self.weight, (self.width,), self.eps)


class LayerNorm(nn.Module):
    """Layer norm with bias over the last dimension. Megatron's layer-norm builder signature."""

    def __init__(self, config, hidden_size: int, eps: float = 1e-5, **_):
        super().__init__()
        self.eps, self.width = eps, hidden_size
        place = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
        self.weight, self.bias = nn.Parameter(torch.ones(hidden_size, **place)), nn.Parameter(torch.zeros(hidden_size, **place))
        self.weight.sequence_parallel = self.bias.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}
