"""The typed configuration of one run: plain frozen dataclasses, no behaviour, no Hydra.

`Run` is what everything else is handed. Values come from recipes (YAML) and the command line, see `compose`; rules that
join several fields are in `rules`. Facts of the paper that are public are the defaults of the recipes; facts that are not
public are choices, listed with their reasons in docs/choices.md.
"""

from dataclasses import dataclass, field

# Of a component's settings, those that say nothing of what its weights mean.
NOT_OF_WEIGHTS = frozenset({"weights", "layer_scale_init", "family", "source", "licence"})


@dataclass(frozen=True)
class Vision:
    """Vision encoder (paper section 4.1; InternViT). Defaults: InternViT-6B-448px-V1-5 in layout, sizes are the recipe's."""

    family: str = "internvit"   # internvit | clip | siglip: under which names and layout its published weights come
    source: str | None = None   # Hugging Face repository it was published in, and its licence: for model cards
    licence: str | None = None
    layers: int = 45
    hidden: int = 3200
    heads: int = 25
    ffn: int = 12800
    tile_size: int = 448        # pixels of a tile's side
    patch: int = 14             # pixels of a patch's side
    norm: str = "rms"           # rms (6B) | layer (300M)
    norm_eps: float = 1e-6
    qkv_bias: bool = False      # 300M: true
    qk_norm: bool = True        # RMSNorm over the full width, all heads together; 300M: false
    layer_scale: bool = True
    layer_scale_init: float = 0.1
    first_norm: bool = False    # a norm before the first layer (CLIP)
    final_norm: bool = False
    class_token: bool = True    # stands before the patches, and is dropped from the features; SigLIP: false
    patch_bias: bool = True     # CLIP: false
    activation: str = "gelu"    # gelu | quick_gelu (CLIP) | gelu_tanh (SigLIP)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)     # of the colours that it was trained on, and their spread: ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    weights: str | None = None  # a pretrained encoder: imported folder, safetensors, or a checkpoint of any architecture


@dataclass(frozen=True)
class Connector:
    """Pixel shuffle, leading LayerNorm, then one or two linears without bias (paper section 4.1; facts 1.4, 1.5)."""

    shuffle: int = 2            # side of the pixel-shuffle block
    layers: int = 2             # 2: MLP (D, H); 1: one linear (X)
    hidden: int | None = None   # inner width; default: the language model's ffn
    norm_eps: float = 1e-5
    resampler_tokens: int = 0   # 0: none (the paper); else tokens that a perceiver resampler makes of each tile (Flamingo)
    resampler_layers: int = 2
    weights: str | None = None  # as the vision encoder's; default: fresh


@dataclass(frozen=True)
class CrossAttention:
    """Gated cross-attention of NVLM-X and NVLM-H (paper sections 4.3 and 4.4; what the paper leaves open: docs/choices.md)."""

    every: int = 8              # in every n-th decoder layer, the n-th first: 8 of 80 and 6 of 60 give ten
    layers: tuple[int, ...] | None = None   # or these layers, counted from 0
    heads: int | None = None    # default: the language model's
    kv_heads: int | None = None
    gate_init: float = 0.0      # the output is scaled by tanh(gate): 0 leaves the language model as it was
    qk_norm: bool = False       # RMSNorm of queries and keys, head by head
    ffn: int = 0                # 0: none; else inner width of a gated feed-forward of its own (Flamingo)
    tag_mask: bool = True       # X: a tile's tag reads that tile only


@dataclass(frozen=True)
class Language:
    """Decoder-only language model: Llama/Qwen2 family (RMSNorm, RoPE, SwiGLU, grouped-query attention)."""

    family: str = "llama"       # llama | qwen2: under which names its published weights come
    source: str | None = None   # as the vision encoder's
    licence: str | None = None
    layers: int = 80
    hidden: int = 8192
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 128
    ffn: int = 29568
    vocab: int = 152064         # rows of the embedding
    rope_base: float = 1e6
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    tie_embeddings: bool = False
    weights: str | None = None  # a pretrained model: as above


@dataclass(frozen=True)
class Tags:
    """Tile tags (paper section 4.2): ordinary text before each tile's visual tokens."""

    kind: str = "1d"                              # none | 1d | 2d_grid | 2d_bbox
    global_name: str = "tile_global_thumbnail"    # the thumbnail's tag, without brackets; Yi uses tile_global
    max_tokens: int = 8         # longest tag; H keeps this much room for each tile's tag in the memory


@dataclass(frozen=True)
class Model:
    architecture: str = "nvlm_d"    # nvlm_d | nvlm_x | nvlm_h
    vision: Vision = field(default_factory=Vision)
    connector: Connector = field(default_factory=Connector)
    cross_attention: CrossAttention = field(default_factory=CrossAttention)     # X and H
    language: Language = field(default_factory=Language)
    tags: Tags = field(default_factory=Tags)
    tokenizer: str = "tiny"     # "tiny" (shipped) or the path of a tokenizer.json
    init_std: float = 0.014     # NVLM's public scripts
    dtype: str = "auto"         # auto: bf16 on GPU, fp32 on CPU | bf16 | fp32
    recompute: str = "none"     # what the decoder computes again in the backward pass: none | selective (attention) | full (layers)
    recompute_parts: tuple[str, ...] = ()   # and single parts: attention, mlp, cross_attention, connector, vision
    kernels: str = "auto"       # auto | torch | te | apex (docs/kernels.md)
    compile: str = "auto"       # element-wise parts as single kernels, by torch's compiler: auto (on a GPU) | on | off
    fp8: str = "none"           # none | current | delayed | mxfp8 (the last two: kernels=te): recipe of the decoder's linear layers
    fp8_layers: str = "auto"    # which of them, by torch: auto (those that gain, config/fp8_layers.py) | mlp | all


@dataclass(frozen=True)
class Train:
    """Optimisation (paper Tables 10 and 11)."""

    steps: int = 100
    global_batch: int = 128     # slots of the order per step
    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_steps: int = 0
    decay_steps: int | None = None  # the rate has come to min_lr by then, and stays there; default: by the last step
    schedule: str = "cosine"    # cosine | constant
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    optimizer_state: str = "fp32"   # AdamW's two moments: fp32 | bf16 (docs/choices.md); master weights stay fp32
    clip_grad: float = 1.0      # global norm; 0: no clipping
    seed: int = 1234
    trainable: tuple[str, ...] = ("connector",)     # components: vision, connector, language (or patterns of names)
    lr_multipliers: dict[str, float] = field(default_factory=dict)  # component or pattern -> factor
    max_bad_steps: int = 3      # non-finite steps in a row that stop the run


@dataclass(frozen=True)
class Source:
    """One entry of a blend: a folder of shards with its index."""

    path: str = ""
    weight: float = 1.0
    epochs: float | None = None


@dataclass(frozen=True)
class Data:
    blend: dict[str, Source] = field(default_factory=dict)
    validation: dict[str, Source] = field(default_factory=dict)
    format: str = "chat"        # pretrain (no roles) | chat
    template: str = "chatml"    # of chat: how turns are written, the language model's own
    system_prompt: str | None = "Follow the user's instruction and answer questions."
    max_tokens: int = 3200      # one sample
    pack_tokens: int = 4096     # one row, T
    max_tiles: int = 6          # one image, thumbnail not counted
    pack_tiles: int = 14        # one row, N
    thumbnail: bool = True
    packing: bool = True
    weigh_by: str = "samples"   # samples | tokens: what the weights of a blend are shares of
    shuffle_window: int = 0     # samples shuffled among each other, in whole shards; 0: all of a source
    cache_gb: float = 0.0       # of remote shards kept on the local disk; 0: only indexes
    cache_dir: str | None = None    # default: nvlm_train in the user's cache folder
    workers: int = 2            # decoding threads; 0: the thread that plans decodes too
    prefetch: int = 2           # steps ahead
    features: str = "auto"      # of a frozen encoder, cached beside the shards: auto (used if all are there) | off | require
    max_refused: float = 0.05   # share of refused samples (after the first 100 slots) that stops the run


@dataclass(frozen=True)
class Layout:
    """How the model lies on the devices; data-parallel size is what is left."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    context: int = 1            # ranks that share a row's tokens
    sequence: bool = False      # sequence parallelism (with tensor > 1)
    first_stage_layers: int | None = None   # decoder layers beside the vision encoder; default: an even split
    overlap: bool = True        # data-parallel messages beside the last row's backward and the next step's first forward
    share_tiles: bool = False   # a frozen encoder whole on each tensor-parallel rank, each seeing its share of a row's tiles


@dataclass(frozen=True)
class Engine:
    """What lays the model out on the devices and updates it. `engine=NAME` is short for `engine.name=NAME`."""

    name: str = "megatron"      # megatron | deepspeed
    zero: int = 2               # DeepSpeed: what data-parallel ranks share out: 1 optimizer state | 2 and gradients | 3 and weights
    offload: str = "none"       # DeepSpeed: none | optimizer (its state and update in host memory)


@dataclass(frozen=True)
class RunSettings:
    dir: str = "runs/default"
    resume: str = "auto"        # auto | never | PATH of a checkpoint
    save_every: int = 0         # steps; 0: only at the end of a stage
    keep_last: int = 2
    async_save: bool = False
    eval_every: int = 0         # steps between validations; 0: at the end of a stage
    eval_batches: int = 8       # train.global_batch samples each
    examples: int = 8           # validation questions answered at the end of a stage, for the report and trackers; 0: none
    examples_every: int = 0     # steps between them; 0: only at the end of a stage
    log_every: int = 1
    view: str = "auto"          # on the terminal: auto (live if it is one) | live | line | plain
    wandb: str = "off"          # off | offline | online
    wandb_project: str = "nvlm_train"
    wandb_entity: str | None = None     # team or user; default: the account's own
    tensorboard: bool = False
    profile: str | None = None  # steps of a stage whose time is looked into, 5 or 5-7, in run.dir/profile; null: none
    timeout_s: int = 600        # collective timeout
    hang_s: int = 300           # without a step after which a job of several processes ends, naming the rank; 0: never
    max_restarts: int = 3       # by Slurm or torchrun, in a row from the same step; more stop the run
    device: str = "auto"        # auto | cpu | cuda


@dataclass(frozen=True)
class Evaluate:
    """Public benchmarks, files of recipes/eval, that the model is asked while it is trained (docs/evaluating.md)."""

    benchmarks: tuple[str, ...] = ()
    every: int = 0              # steps between two rounds of questions; 0: only after checkpoints
    at_checkpoints: bool = True     # after each checkpoint, a stage's last one included; false: nvlm eval-checkpoints does that
    limit: int = 0              # questions of each benchmark; 0: all
    max_new_tokens: int | None = None   # longest answer; default: the benchmark's own
    data: dict[str, str] = field(default_factory=dict)      # benchmark -> folder of its public files
    examples: int = 8           # answers of each benchmark that are shown; 0: none


@dataclass(frozen=True)
class Guard:
    """Watches that finetuning costs the language model no text ability (docs/evaluating.md)."""

    benchmarks: tuple[str, ...] | None = None   # of evaluate.benchmarks; default: all without pictures; empty: no guard
    margin: float = 2.0         # points of 100 below the backbone that are too many, if the drop is significant
    stop: bool = False          # whether that ends the run


@dataclass(frozen=True)
class Run:
    """One stage of one run, resolved. Immutable; the only thing training, data and model are built from."""

    recipe: str
    stage: str                  # pretrain | sft
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    data: Data = field(default_factory=Data)
    layout: Layout = field(default_factory=Layout)
    engine: Engine = field(default_factory=Engine)
    init: str | None = None     # RUN | CHECKPOINT to start from
    run: RunSettings = field(default_factory=RunSettings)
    evaluate: Evaluate = field(default_factory=Evaluate)
    guard: Guard = field(default_factory=Guard)
