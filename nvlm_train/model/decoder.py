"""The language model: embedding, Megatron's TransformerBlock with our attention and norms, and the output layer.

Everything that names Megatron's layer specs is here. Positions are explicit (packed rows restart them), and only asked-for
positions reach the output layer: logits of the vocabulary are the largest tensor of a step.
"""

from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from nvlm_train.config.fp8_layers import fp8_linears
from nvlm_train.config.layers import cross_layers
from nvlm_train.config.recompute import recomputed
from nvlm_train.config.schema import Layout, Model
from nvlm_train.config.split import padded_size
from nvlm_train.kernels import KernelPlan
from nvlm_train.model.attention import PackedCausalAttention
from nvlm_train.model.cross_attention import GatedCrossAttention, GatedFeedForward, ReadingLayer
from nvlm_train.model.elementwise import SwiGLU
from nvlm_train.model.fp8_linear import put_in
from nvlm_train.model.loss import token_losses
from nvlm_train.model.norm import ApexRMSNorm, RMSNorm
from nvlm_train.model.padding import mark
from nvlm_train.model.weight_gradient import take_product

# Megatron's names of the decoder's parts that may be computed again.
_MODULES = {"attention": "core_attn", "mlp": "mlp"}

# Transformer Engine's recipes by Megatron's names. Hybrid: gradients in E5M2, which has the wider range; mxfp8 scales blocks of
# 32 and keeps E4M3 for all. Delayed scaling's maxima are shared by a replica's ranks only: these run the same rows, while replicas
# may differ in their number of rows, and a rank would wait for a reduction that never comes.
_FP8 = {
    "none": {},
    "current": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "delayed": {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max",
                "tp_only_amax_red": True},
    "mxfp8": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
}


def _leave(tensor: Tensor) -> None:
    """Megatron's initialisation hook; ours runs afterwards, by name (see `init`)."""


def _recompute(model: Model) -> dict:
    """What Megatron computes again of the decoder's layers."""
    if model.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    modules = [name for part, name in _MODULES.items() if part in recomputed(model)]
    return {"recompute_granularity": "selective", "recompute_modules": modules} if modules else {}


def language_config(model: Model, layout: Layout, dtype: torch.dtype, kernels: KernelPlan) -> TransformerConfig:
    """Megatron's configuration of the decoder, from ours."""
    lm = model.language
    return TransformerConfig(
        num_layers=lm.layers, hidden_size=lm.hidden, num_attention_heads=lm.heads, num_query_groups=lm.kv_heads,
        kv_channels=lm.head_dim, ffn_hidden_size=lm.ffn, layernorm_epsilon=lm.norm_eps, add_qkv_bias=lm.qkv_bias,
        normalization="RMSNorm", gated_linear_unit=True, activation_func=F.silu, add_bias_linear=False,
        hidden_dropout=0.0, attention_dropout=0.0, init_method=_leave, output_layer_init_method=_leave,
        tensor_model_parallel_size=layout.tensor, pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
        num_layers_in_first_pipeline_stage=layout.first_stage_layers if layout.pipeline > 1 else None,
        sequence_parallel=layout.sequence and layout.tensor > 1, params_dtype=dtype, pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16, calculate_per_token_loss=True, masked_softmax_fusion=False,
        gradient_accumulation_fusion=kernels.wgrad in ("apex", "product"), apply_rope_fusion=kernels.rope == "te",
        use_te_activation_func=kernels.elementwise == "compiled",   # Megatron's name for one of the layer spec, whoever's it is
        bias_activation_fusion=False, bias_dropout_fusion=False,
        batch_p2p_comm=torch.cuda.is_available(), **_recompute(model), **_FP8[kernels.fp8 if kernels.linear == "te" else "none"])


def encoder_config(model: Model, tensor: int, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's configuration of encoder and connector: split over `tensor` ranks only, all on the first stage."""
    vit = model.vision
    heads = padded_size(vit.heads, tensor)
    return TransformerConfig(
        num_layers=vit.layers, hidden_size=vit.hidden, num_attention_heads=heads, ffn_hidden_size=vit.ffn,
        kv_channels=vit.hidden // vit.heads, num_query_groups=heads, init_method=_leave, output_layer_init_method=_leave,
        tensor_model_parallel_size=tensor, params_dtype=dtype, bf16=dtype == torch.bfloat16, gradient_accumulation_fusion=False)


def _norm(kernels: KernelPlan) -> type[RMSNorm]:
    """Of norms that stand alone: Transformer Engine's gain lies in those inside a linear layer."""
    return ApexRMSNorm if kernels.norm == "apex" else RMSNorm


def _layer_spec(kernels: KernelPlan):
    """Megatron's decoder layer, its parts as the plan says."""
    if kernels.linear == "te":
        from nvlm_train.model.te_layers import engine_layer_spec

        spec = engine_layer_spec()
    else:
        spec = get_gpt_layer_local_spec(normalization="RMSNorm")
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = _norm(kernels)
        spec.submodules.self_attention.submodules.core_attention = partial(PackedCausalAttention, kernel=kernels.attention)
    if kernels.elementwise == "compiled":
        mlp = spec.submodules.mlp      # megatron-core 0.19 has made it a partial
        parts = mlp.keywords["submodules"] if isinstance(mlp, partial) else mlp.submodules
        parts.activation_func = SwiGLU
    return spec


def _reading_spec(kernels: KernelPlan, model: Model):
    """The same layer with gated cross-attention between self-attention and MLP (the paper's Figure 3)."""
    spec, cross = _layer_spec(kernels), model.cross_attention
    spec.module = ReadingLayer
    spec.submodules.pre_cross_attn_layernorm = _norm(kernels)
    spec.submodules.cross_attention = ModuleSpec(
        GatedCrossAttention, {"language": model.language, "cross": cross, "kernel": kernels.cross_attention,
                              "recompute": "cross_attention" in recomputed(model)})
    spec.submodules.cross_attn_bda = get_bias_dropout_add if not cross.ffn else ModuleSpec(
        GatedFeedForward, {"language": model.language, "width": cross.ffn})
    return spec


def rotary_angles(positions_T: Tensor, head_dim: int, base: float) -> Tensor:
    """Plain 1-D RoPE angles of explicit positions, float32 [T, 1, 1, head_dim], halves repeated (rotate-half convention)."""
    inverse = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_T.device) / head_dim)
    angles = positions_T.float()[:, None] * inverse
    return torch.cat((angles, angles), -1)[:, None, None]


class Decoder(MegatronModule):
    """One pipeline stage of the language model.

    The vocabulary is padded to a multiple of the tensor-parallel size: `language.vocab` rows exist, the spare ones are zero, are never
    looked up, and their logits are minus infinity.
    """

    def __init__(self, config: TransformerConfig, model: Model, kernels: KernelPlan, pre_process: bool, post_process: bool,
                 vp_stage: int | None):
        super().__init__(config)
        language = model.language
        self.language, self.kernels, self.pre_process, self.post_process = language, kernels, pre_process, post_process
        take_product(kernels.wgrad)
        rows = padded_size(language.vocab, config.tensor_model_parallel_size)
        if pre_process:
            self.embedding = VocabParallelEmbedding(rows, language.hidden, init_method=config.init_method, config=config)
            mark(self.embedding.weight, 0, language.vocab)
        first, reading = get_transformer_layer_offset(config, vp_stage=vp_stage), cross_layers(model)
        layers = range(first, first + get_num_layers_to_build(config, vp_stage=vp_stage))
        specs = TransformerBlockSubmodules(
            [_reading_spec(kernels, model) if number in reading else _layer_spec(kernels) for number in layers], _norm(kernels))
        self.decoder = TransformerBlock(config, specs, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)
        if kernels.linear == "te":
            from nvlm_train.model.te_layers import add_weight_gradients_in_the_product

            add_weight_gradients_in_the_product(self.decoder, kernels.wgrad == "te")
        self.fp8_products = put_in(self.decoder, fp8_linears(model, config.tensor_model_parallel_size), kernels.elementwise == "compiled") \
            if kernels.linear == "fp8" else []
        if post_process:
            tied = language.tie_embeddings and pre_process
            self.output_layer = ColumnParallelLinear(
                language.hidden, rows, config=config, init_method=config.init_method, bias=False,
                skip_bias_add=False, gather_output=False, skip_weight_param_allocation=tied)
            if not tied:
                mark(self.output_layer.weight, 0, language.vocab)
            local = self.output_layer.output_size_per_partition
            self.real_rows = min(max(language.vocab - self.output_layer.tp_group.rank() * local, 0), local)
            # The rows arrive already gathered and thinned to the supervised ones: no sequence to gather here.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = config.tensor_model_parallel_size > 1
            if tied:    # a product that adds up its own weight gradient makes data parallelism drop the embedding's
                self.output_layer.gradient_accumulation_fusion = False

    def weights_changed(self, frozen: bool) -> None:
        """Tell layers that keep their weights in another form. frozen: all weights were written, not the trained ones alone."""
        for product in self.fp8_products:
            product.forget(frozen)

    def embed(self, tokens_T: Tensor) -> Tensor:
        """[T] -> [T, 1, H], whole on every tensor-parallel rank."""
        return self.embedding(tokens_T[:, None])

    def run(self, hidden: Tensor, memory: Tensor | None, positions_T: Tensor, packed: PackedSeqParams) -> Tensor:
        """The stage's layers: hidden [T, 1, H] and memory [M, 1, H] (None: NVLM-D) -> hidden.

        Under sequence parallelism all of them are this rank's slices, [T / tensor, 1, H].
        """
        if not self.pre_process:
            self.decoder.set_input_tensor(hidden)
        angles = rotary_angles(positions_T, self.language.head_dim, self.language.rope_base)
        if self.kernels.rope == "compiled":     # our core attention turns queries and keys itself
            half = angles[:, 0, 0, :self.language.head_dim // 2]
            packed.rotary, angles = (half.cos(), half.sin()), None
        out = self.decoder(hidden, attention_mask=None, context=memory, rotary_pos_emb=angles, packed_seq_params=packed)
        return out[0] if isinstance(out, tuple) else out

    def losses(self, hidden: Tensor, at_K: Tensor, labels_K: Tensor) -> Tensor:
        """float32 [K] cross-entropies at row positions at_K."""
        logits = self.logits(hidden, at_K)
        return token_losses(logits, labels_K, self.output_layer.tp_group, self.kernels.elementwise == "compiled")

    def logits(self, hidden: Tensor, at_K: Tensor) -> Tensor:
        """Last stage's hidden states -> this rank's slice of the padded vocabulary's logits at row positions at_K: [K, V / tensor]."""
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        weight = self.embedding.weight if self.output_layer.weight is None else None
        logits = self.output_layer(hidden.index_select(0, at_K), weight=weight)[0].squeeze(1)    # its gradient stays a view
        if self.real_rows < logits.shape[-1]:
            with torch.no_grad():   # not part of the graph: where a logit is minus infinity, the loss's gradient is exactly 0 anyway
                logits[:, self.real_rows:] = -torch.inf
        return logits
