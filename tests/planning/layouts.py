"""Layouts whose steps are simulated: few layers, for time, of real widths, so that every term is of the size that it has in earnest."""

LAYOUTS = (
    # NVLM-D: uneven pipeline, recomputation, behind a frozen language model, interleaved; the encoder trained
    "d_72b sft 9 layout.first_stage_layers=3",
    "d_72b sft 4 layout.pipeline=2 layout.first_stage_layers=1 model.recompute=full",
    "d_72b pretrain 2 model.recompute=none",
    "d_34b sft 8 layout.pipeline=2 layout.virtual=2 layout.first_stage_layers=null",
    "d_2b sft 2 train.trainable=[vision,connector,language]",
    "d_72b pretrain 2 train.trainable=[vision,connector]",
    # NVLM-X and NVLM-H: both stages, pipelines
    "x_72b sft 4 model.cross_attention.every=4 model.recompute=none",
    "x_72b pretrain 8 model.cross_attention.every=4 layout.pipeline=2",
    "h_72b sft 4 model.cross_attention.every=2 layout.pipeline=2",
    # a frozen encoder whole on each rank; parts computed again
    "x_72b sft 2 model.cross_attention.every=2 layout.share_tiles=true model.recompute_parts=[mlp,cross_attention]",
)

MORE_LAYOUTS = (
    "d_72b sft 4 layout.pipeline=2 layout.first_stage_layers=1 model.recompute=none",
    "d_72b pretrain 2 model.recompute=full",
    # a part of the language model trained
    "d_72b sft 3 layout.pipeline=1 layout.first_stage_layers=null train.trainable=[connector,language.decoder.layers.1.*]",
    # one GPU, tied embeddings; a vocabulary that the tensor-parallel size does not divide
    "d_2b sft 2",
    "d_2b sft 2 layout.tensor=2 model.language.vocab=151937",
    # CLIP's and SigLIP's settings of the encoder
    ("d_2b pretrain 1 train.trainable=[vision,connector] model.vision.first_norm=true model.vision.patch_bias=false"
     " model.vision.activation=quick_gelu model.vision.layer_scale=false"),
    ("d_2b pretrain 1 train.trainable=[vision,connector] model.vision.final_norm=true model.vision.class_token=false"
     " model.vision.activation=gelu_tanh model.vision.layer_scale=false"),
    # recomputation, without sequence parallelism, a resampler, Llama 3-V's parts, one tensor-parallel rank
    "x_72b sft 4 model.cross_attention.every=4 model.recompute=full",
    "x_72b pretrain 4 model.cross_attention.every=4 model.recompute=full",
    "x_34b sft 6 model.cross_attention.every=3 layout.pipeline=2 layout.virtual=3 layout.sequence=false layout.tensor=2",
    "x_72b sft 2 model.cross_attention.every=2 model.connector.resampler_tokens=64",
    "x_72b sft 2 model.cross_attention.every=2 model.cross_attention.ffn=8192 model.cross_attention.qk_norm=true",
    "h_72b pretrain 4 model.cross_attention.every=4",
    "h_34b sft 2 model.cross_attention.every=2 layout.tensor=1",
    # fp8 by torch: the large linears, all; a frozen language model; recomputed
    "d_72b sft 5 layout.first_stage_layers=2 model.fp8=current model.recompute=none",
    "d_72b sft 2 layout.pipeline=1 layout.first_stage_layers=null model.fp8=current model.fp8_layers=all model.recompute=none",
    "d_72b pretrain 2 model.fp8=current",
    "d_34b sft 4 layout.pipeline=1 layout.first_stage_layers=null layout.tensor=2 layout.sequence=false model.fp8=current model.fp8_layers=mlp model.recompute=full",
    # more parts computed again, alone and together, frozen and trained
    "d_72b sft 3 layout.pipeline=1 layout.first_stage_layers=null model.recompute=none model.recompute_parts=[mlp]",
    "d_2b sft 2 train.trainable=[vision,connector,language] model.recompute_parts=[attention,vision,connector]",
    "d_72b pretrain 2 layout.share_tiles=true model.recompute=none model.recompute_parts=[connector,mlp]",
    "x_72b sft 2 model.cross_attention.every=2 model.cross_attention.qk_norm=true model.recompute_parts=[cross_attention]",
    "h_72b pretrain 4 model.cross_attention.every=4 layout.share_tiles=true layout.overlap=false",
    # few layers beside an encoder whose tiles are shared out: fusion and connector, forward and backward, are the fullest moments
    "h_72b pretrain 4 model.cross_attention.every=2 layout.pipeline=2 layout.share_tiles=true model.recompute_parts=[connector]",
    "d_72b pretrain 4 layout.pipeline=2 layout.first_stage_layers=1 layout.share_tiles=true model.recompute=full",
)

# Rows that context-parallel ranks share.
SHARED_LAYOUTS = (
    "d_2b sft 2 layout.context=2",
    "d_2b pretrain 2 layout.context=4 model.recompute=selective",
    "d_72b sft 4 layout.context=2 layout.pipeline=2 layout.first_stage_layers=1 model.recompute=none",
    "x_72b sft 4 model.cross_attention.every=2 layout.context=2 layout.pipeline=2 model.recompute=none",
    "h_34b sft 2 model.cross_attention.every=2 layout.tensor=1 layout.context=2",
)


def overrides(layout: str) -> list[str]:
    """A layout's words for the command line: recipe, stage, decoder layers, and the rest as it is."""
    recipe, stage, layers, *rest = layout.split()
    return [f"recipe=nvlm_{recipe}", f"stage={stage}", f"model.language.layers={layers}", "model.vision.layers=3", *rest]
