"""From patch features to language-model tokens: pixel shuffle, LayerNorm, one or two linears without bias.

Paper section 4.1 and the public code: a 2x2 pixel shuffle makes 256 tokens of 1,024 patches, LayerNorm runs first, the MLP's
inner width is the language model's FFN width (D, H), and NVLM-X has a single linear. The designs that NVLM is compared with may
add a perceiver resampler behind it.
"""

import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nvlm_train.config.schema import Connector as Settings
from nvlm_train.config.schema import Language
from nvlm_train.model.norm import LayerNorm
from nvlm_train.model.resampler import Resampler


def pixel_shuffle(x_nLC: Tensor, side: int) -> Tensor:
    """[n, g*g, C] row-major patches -> [n, (g/side)^2, side*side*C], row-major; order `v2` of the released model.

    Each token concatenates its block of patches left to right, top to bottom.
    """
    n, patches, width = x_nLC.shape
    grid = int(patches**0.5)
    blocks = x_nLC.view(n, grid // side, side, grid // side, side, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, (grid // side) ** 2, side * side * width)


class Connector(MegatronModule):
    """[n, patches, C] -> [n, tokens, H]."""

    def __init__(self, config, settings: Settings, vision_width: int, language: Language):
        super().__init__(config)
        self.shuffle = settings.shuffle
        width, inner, out = vision_width * settings.shuffle**2, settings.hidden or language.ffn, language.hidden
        self.norm = LayerNorm(config, width, settings.norm_eps)
        common = {"config": config, "init_method": config.init_method, "bias": False, "skip_bias_add": False}
        if settings.layers == 1:
            self.linear_fc1, self.linear_fc2 = ColumnParallelLinear(width, out, gather_output=True, **common), None
        else:
            self.linear_fc1 = ColumnParallelLinear(width, inner, gather_output=False, **common)
            self.linear_fc2 = RowParallelLinear(inner, out, input_is_parallel=True, **common)
        self.resampler = None
        if settings.resampler_tokens:
            self.resampler = Resampler(config, out, settings.resampler_tokens, settings.resampler_layers, out // language.heads,
                                       settings.norm_eps)

    def forward(self, x_nLC: Tensor) -> Tensor:
        hidden = self.linear_fc1(self.norm(pixel_shuffle(x_nLC, self.shuffle)))[0]
        if self.linear_fc2 is not None:
            hidden = self.linear_fc2(F.gelu(hidden))[0]
        return hidden if self.resampler is None else self.resampler(hidden)
