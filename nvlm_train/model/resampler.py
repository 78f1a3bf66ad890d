"""Perceiver resampler: a fixed number of tokens out of each tile's (Flamingo; the NVLM paper's appendix C compares with it).

Learned queries read the tile's tokens and themselves, layer by layer. NVLM does without: what is resampled away is missed in dense
text. It is here for that comparison.
"""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from nvlm_train.model.norm import LayerNorm
from nvlm_train.model.vision import Layers


class ResamplerLayer(MegatronModule):
    """Cross-attention of the queries, then an MLP of four times the width; both residual."""

    def __init__(self, config, width: int, head_dim: int, eps: float):
        super().__init__(config)
        common = {"config": config, "init_method": config.init_method, "bias": False, "skip_bias_add": False}
        self.head_dim = head_dim
        self.norm_queries, self.norm_tokens, self.norm_mlp = (LayerNorm(config, width, eps) for _ in range(3))
        self.linear_q, self.linear_k, self.linear_v = (
            ColumnParallelLinear(width, width, gather_output=False, **common) for _ in range(3))
        self.linear_proj = RowParallelLinear(width, width, input_is_parallel=True, **common)
        self.linear_fc1 = ColumnParallelLinear(width, 4 * width, gather_output=False, **common)
        self.linear_fc2 = RowParallelLinear(4 * width, width, input_is_parallel=True, **common)

    def forward(self, queries_nRH: Tensor, tokens_ntH: Tensor) -> Tensor:
        """-> [n, R, H]"""
        normed = self.norm_queries(queries_nRH)
        sources = torch.cat((self.norm_tokens(tokens_ntH), normed), 1)
        q, k, v = (linear(x)[0].unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
                   for linear, x in ((self.linear_q, normed), (self.linear_k, sources), (self.linear_v, sources)))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries_nRH = queries_nRH + self.linear_proj(read)[0]
        return queries_nRH + self.linear_fc2(F.gelu(self.linear_fc1(self.norm_mlp(queries_nRH))[0]))[0]


class Resampler(MegatronModule):
    """[n, t, H] -> [n, R, H]."""

    def __init__(self, config, width: int, tokens: int, layers: int, head_dim: int, eps: float):
        super().__init__(config)
        self.queries = nn.Parameter(torch.zeros(tokens, width, dtype=config.params_dtype, device=torch.cuda.current_device()))
        self.layers = Layers(ResamplerLayer(config, width, head_dim, eps) for _ in range(layers))
        self.norm = LayerNorm(config, width, eps)

    def forward(self, tokens_ntH: Tensor) -> Tensor:
        queries = self.queries.expand(len(tokens_ntH), -1, -1)
        for layer in self.layers:
            queries = layer(queries, tokens_ntH)
        return self.norm(queries)
