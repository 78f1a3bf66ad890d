"""NVLM: vision encoder, connector, fusion, decoder, loss. One pipeline stage of it; the first carries the encoder.

A forward in four verbs: see the tiles, fuse them with the embedded tokens, run the layers, and, on the last stage, answer with
token losses or logits. In NVLM-X and NVLM-H the image memory travels behind the hidden states from stage to stage, as one tensor.
"""

import itertools
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.recompute import recomputed
from nvlm_train.config.schema import Layout, Model
from nvlm_train.config.split import encoder_tensor, tiles_each
from nvlm_train.contracts import PackedBatch
from nvlm_train.kernels import KernelPlan
from nvlm_train.model.attention import packing
from nvlm_train.model.cache import CacheRow
from nvlm_train.model.connector import Connector
from nvlm_train.model.context import Share
from nvlm_train.model.context_attention import split_attention
from nvlm_train.model.cross_attention import GatedCrossAttention
from nvlm_train.model.decoder import Decoder, encoder_config, language_config
from nvlm_train.model.freeze import is_cross_attention
from nvlm_train.model.fusion import Places, fuse, place
from nvlm_train.model.padding import with_real_shapes
from nvlm_train.model.recompute import again
from nvlm_train.model.sharing import TileShare
from nvlm_train.model.vision import VisionEncoder
from nvlm_train.parallel.device import send

EXTRA_STATE = "._extra_state"     # torch's name for what a module saves beside its tensors


@dataclass(frozen=True)
class DeviceRow:
    """A packed row on the device, with what must be known on the host so that nothing waits for the device.

    at_K: row positions whose next token is supervised (at least one, perhaps of weight 0); labels_K, weights_K: theirs.
    """

    tokens_T: Tensor
    positions_T: Tensor
    packed: object
    tiles_nCPP: Tensor
    features_nLC: Tensor | None
    places: Places
    at_K: Tensor
    labels_K: Tensor
    weights_K: Tensor

    @property
    def decoding(self) -> bool:
        """Whether its tokens are one each of sequences that a cache holds: no tiles, no memory, no neighbours."""
        return self.packed.held is not None and self.packed.held.decoding


def to_device(row: PackedBatch, device: torch.device, tile_tokens: int, at: Tensor | None = None,
              held: CacheRow | None = None, share: Share | None = None) -> DeviceRow:
    """Send a row to the device. tile_tokens: visual tokens of a tile. `at` overrides the supervised positions (for logits); held: what
    a cache keeps of the row (for generation); share: what the row was taken from, if it is one rank's part of a longer one."""
    at = row.loss_weights_T.nonzero()[:, 0] if at is None else at
    if not len(at):
        at = torch.zeros(1, dtype=torch.long)  # an empty row still takes part; its weight is 0
    edges = row.cu_seqlens.tolist()
    packed = packing(send(row.cu_seqlens, device), max(b - a for a, b in itertools.pairwise(edges)), edges)
    places = place(row, tile_tokens, device, share)
    packed.reads = places.reads
    packed.held = held and held.placed(places.edges, device)
    packed.split = share and split_attention(share, device)
    return DeviceRow(
        tokens_T=send(row.tokens_T, device), positions_T=send(row.positions_T, device), packed=packed,
        tiles_nCPP=send(row.tiles_nCPP, device), features_nLC=None if row.features_nLC is None else send(row.features_nLC, device),
        places=places, at_K=send(at, device), labels_K=send(row.labels_T[at], device), weights_K=send(row.loss_weights_T[at], device))


def _carrying(tensor: Tensor) -> Tensor:
    """The same values, certain to get a gradient in training."""
    return tensor if tensor.requires_grad or not torch.is_grad_enabled() else tensor.detach().requires_grad_()


class Nvlm(MegatronModule):
    """One (virtual) pipeline stage of NVLM-D, -X or -H.

    Its sub-modules are the components `vision`, `connector` and `language`: names of parameters begin with them, and
    freezing, learning-rate factors and checkpoints speak of them. memory_tokens: room for the memory in what stages exchange
    (`config.split.memory_budget`). share: whom it shares the tiles with, if the layout says so.
    """

    def __init__(self, model: Model, layout: Layout, dtype: torch.dtype, kernels: KernelPlan, pre_process: bool,
                 post_process: bool, vp_stage: int | None = None, memory_tokens: int = 0, share: TileShare | None = None):
        config = language_config(model, layout, dtype, kernels)
        super().__init__(config)
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.model_type = ModelType.encoder_or_decoder          # these three names are Megatron's schedule's and
        self.share_embeddings_and_output_weights = False        # gradient finaliser's (a tied model has one stage,
        if pre_process:                                         # where its two uses are one parameter)
            small = encoder_config(model, layout.tensor, dtype)
            self.vision = VisionEncoder(encoder_config(model, encoder_tensor(layout), dtype), model.vision, share,
                                        "vision" in recomputed(model), kernels.elementwise == "compiled")
            self.connector = Connector(small, model.connector, model.vision.hidden, model.language)
        self.language = Decoder(config, model, kernels, pre_process, post_process, vp_stage)
        self.architecture, self.cross_layers = model.architecture, cross_layers(model)
        self.connects_again = "connector" in recomputed(model)
        self.memory_tokens = memory_tokens
        self.slices = config.tensor_model_parallel_size if config.sequence_parallel else 1
        self.hidden_carries = True
        self._received: Tensor | None = None

    def set_input_tensor(self, tensor) -> None:
        """Megatron's schedule hands over the previous stage's output."""
        self._received = tensor[0] if isinstance(tensor, list) else tensor

    def route_gradients(self, trained: Collection[str]) -> None:
        """Decide whether the hidden states that enter this stage need a gradient. trained: names over the whole model.

        Nothing does below NVLM-X's first cross-attention layer while its language model is frozen: there only the memory carries
        one (`Frozen means free`). Everywhere else hidden states carry it, whatever is frozen, since a stage waits for it.
        """
        layers = self.language.decoder.layers
        first = layers[0].layer_number - 1 if len(layers) else 0
        frozen = not any(name.startswith("language.") and not is_cross_attention(name) for name in trained)
        self.hidden_carries = not (self.architecture == "nvlm_x" and frozen and first <= min(self.cross_layers))

    def use_every_weight(self) -> None:
        """From now on in every row, also where there is nothing to read: ZeRO gathers and reduces weights as they are used, all ranks
        together, so that one which left some out would leave the others waiting."""
        for module in self.modules():
            if isinstance(module, GatedCrossAttention):
                module.always_takes_part = True

    def see(self, row: DeviceRow) -> Tensor:
        """Tiles, or their cached features -> [n, tokens, H]. A row without tiles sends one blank through the connector and keeps
        nothing of it, so that every trainable parameter gets a gradient on every rank. Where a row is shared out, so are its tiles, and
        all ranks are given what each has seen."""
        features = self.vision(row.tiles_nCPP) if row.features_nLC is None else row.features_nLC
        n, split = row.places.tiles, row.packed.split
        blanks = max(1, tiles_each(n, split.share.context.size) if split else n) - len(features)
        features = F.pad(features, (0, 0, 0, 0, 0, blanks)) if blanks else features
        seen = again(self.connector, features) if self.connects_again else self.connector(features)
        return split.gather(seen)[:n] if split and n else seen[:n]

    def forward(self, row: DeviceRow, want: str = "loss") -> Tensor:
        """What the next stage receives: hidden states [T (/ tensor), 1, H], in X and H with the memory behind them. On the last stage
        float32 [K] token losses, or with want="logits" this rank's slice [K, V / tensor] of the padded vocabulary."""
        hidden, memory = self._first(row) if self.pre_process else self._later(row)
        hidden = self.language.run(hidden, memory, row.positions_T, row.packed)
        if not self.post_process:
            return hidden if memory is None else self._with_memory(hidden, memory)
        if want == "logits":
            return self.language.logits(hidden, row.at_K)
        losses = self.language.losses(hidden, row.at_K, row.labels_K)
        # A row of text alone may have touched nothing that came from the stage before, which waits for a gradient all the same: add
        # nothing, but in the graph.
        return losses if memory is None else losses + memory[:0].sum()

    def _first(self, row: DeviceRow) -> tuple[Tensor, Tensor | None]:
        """Hidden states and memory of a row, sliced under sequence parallelism."""
        tag_ids = row.places.tag_ids
        tokens = torch.cat((row.tokens_T, tag_ids)) if len(tag_ids) else row.tokens_T
        hidden, memory = self.language.embed(tokens), None
        if not row.decoding:
            hidden, memory = fuse(hidden, self.see(row), row.places, bool(self.cross_layers))
        if self.slices > 1:
            hidden = scatter_to_sequence_parallel_region(hidden)
            if memory is not None:
                spare = -len(memory) % self.slices
                memory = scatter_to_sequence_parallel_region(F.pad(memory, (0, 0, 0, 0, 0, spare)))
        hidden = _carrying(hidden) if self.hidden_carries else hidden.detach()
        return hidden, None if memory is None else _carrying(memory)

    def _later(self, row: DeviceRow) -> tuple[Tensor, Tensor | None]:
        """The same from what the previous stage sent."""
        if not self.cross_layers or row.decoding:
            return self._received, None
        tokens = len(row.tokens_T) // self.slices
        memory = -(-row.places.memory_tokens // self.slices)
        hidden = self._received[:tokens]
        return hidden if self.hidden_carries else hidden.detach(), self._received[tokens:tokens + memory]

    def _with_memory(self, hidden: Tensor, memory: Tensor) -> Tensor:
        """[hidden ; memory ; room left], one tensor of a fixed length."""
        spare = self.memory_tokens // self.slices - len(memory)
        return torch.cat((hidden, memory, memory.new_zeros(spare, *memory.shape[1:])))

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        """Layer numbers are part of the names, so that any pipeline split may load them; padding is known (see `padding`).

        What a linear layer adds to its tensors stays behind: from Megatron's it is nothing, from Transformer Engine's a pickle of
        fp8 scales, which nobody may have to load.
        """
        state = super().sharded_state_dict(prefix, sharded_offsets, {"non_homogeneous_layers": True, **(metadata or {})})
        for name, value in state.items():
            if name.endswith(EXTRA_STATE):
                value.data = None
        return with_real_shapes(state)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As torch's; what a file claims to be a linear layer's extra state is not looked at (see `sharded_state_dict`)."""
        safe = {name: None if name.endswith(EXTRA_STATE) else value for name, value in state_dict.items()}
        return super().load_state_dict(safe, strict, assign)
