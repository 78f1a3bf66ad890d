"""Transformer Engine in the decoder: its layers through Megatron-Core's wrappers, its attention on packed rows.

The layer norms are inside the linear layers behind them, so a parameter has another name in the module (`freeze.plain_name`);
checkpoints use the fused name whatever the kernels. Imported only where the plan says so.
"""

from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor, nn


class PackedEngineAttention(nn.Module):
    """Transformer Engine's fused attention over a row's samples. Megatron's core-attention builder signature, no parameters.

    It gets the row as `thd`, tokens of all samples one after the other with the samples' boundaries, under `padding_causal`: the
    one causal mask that it has for that layout, which never crosses a boundary. Grouped queries are its own.
    """

    def __init__(self, config, layer_number: int, attn_mask_type, attention_type: str, **rest):
        super().__init__()
        self.layer_number, self.scale = layer_number, rest.get("softmax_scale")
        self.engine = TEDotProductAttention(config, layer_number, AttnMaskType.causal, attention_type, **rest)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask=None, *, attn_mask_type=None,
                attention_bias=None, packed_seq_params: PackedSeqParams) -> Tensor:
        """query [T, 1, heads, d], key and value [T, 1, kv_heads, d] -> [T, 1, heads * d]. One row a micro-batch."""
        if query.shape[1] != 1:
            raise ValueError(f"a micro-batch is one packed row, but {query.shape[1]} sequences came")
        row = packed_seq_params     # its own format says sbhd, so that Megatron leaves the rotary positions to us
        if row.held is not None and row.held.decoding:
            out = row.held.attend(self.layer_number, query[:, 0], key[:, 0], value[:, 0], self.scale)
            return out.reshape(len(query), 1, -1)
        if row.held is not None:
            row.held.keep(self.layer_number, key[:, 0], value[:, 0], row.edges)
        thd = PackedSeqParams(qkv_format="thd", cu_seqlens_q=row.cu_seqlens_q, cu_seqlens_kv=row.cu_seqlens_kv,
                              max_seqlen_q=row.max_seqlen_q, max_seqlen_kv=row.max_seqlen_kv)
        out = self.engine(query[:, 0].contiguous(), key[:, 0].contiguous(), value[:, 0].contiguous(), None,
                          attn_mask_type=AttnMaskType.causal, packed_seq_params=thd)
        return out.reshape(len(query), 1, -1)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None) -> dict:
        return {}


def engine_layer_spec() -> ModuleSpec:
    """Megatron's decoder layer on Transformer Engine: linear layers with the norms inside, and packed attention."""
    spec = get_gpt_layer_with_transformer_engine_spec()
    spec.submodules.self_attention.submodules.core_attention = PackedEngineAttention
    return spec


def add_weight_gradients_in_the_product(module: nn.Module, wanted: bool) -> None:
    """Let Transformer Engine's linear layers below `module` add their weight gradients to Megatron's fp32 buffer themselves.

    Set here and not by Megatron's `gradient_accumulation_fusion`, which means its own linear layers too: those need apex.
    """
    for layer in module.modules():
        if hasattr(layer, "fuse_wgrad_accumulation"):
            layer.fuse_wgrad_accumulation = wanted
