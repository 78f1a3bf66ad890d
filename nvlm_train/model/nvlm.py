"""NVLM: vision encoder, connector, fusion, decoder, loss. One pipeline stage of it; the first carries the encoder.

A forward in four verbs: see the tiles, splice them into the embedded tokens, run the layers, and, on the last stage, answer
with token losses or logits.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nvlm_train.config.schema import Layout, Model
from nvlm_train.contracts import PackedBatch
from nvlm_train.model.attention import packing
from nvlm_train.model.connector import Connector
from nvlm_train.model.decoder import Decoder, encoder_config, language_config
from nvlm_train.model.fusion import splice
from nvlm_train.model.loss import token_losses
from nvlm_train.model.vision import VisionEncoder

COMPONENTS = ("vision", "connector", "language")


@dataclass(frozen=True)
class DeviceRow:
    """A packed row on the device, with what must be known on the host so that nothing waits for the device.

    at_K: row positions whose next token is supervised (at least one, perhaps of weight 0); labels_K, weights_K: theirs.
    """

    tokens_T: Tensor
    positions_T: Tensor
    packed: object
    tiles_nCPP: Tensor
    tile_starts_n: Tensor
    at_K: Tensor
    labels_K: Tensor
    weights_K: Tensor


def to_device(row: PackedBatch, device: torch.device, at: Tensor | None = None) -> DeviceRow:
    """Send a row to the device. `at` overrides the supervised positions (for logits)."""
    at = row.loss_weights_T.nonzero()[:, 0] if at is None else at
    if not len(at):
        at = torch.zeros(1, dtype=torch.long)  # an empty row still takes part; its weight is 0
    edges = row.cu_seqlens.tolist()
    move = {"device": device, "non_blocking": True}
    return DeviceRow(
        tokens_T=row.tokens_T.to(**move), positions_T=row.positions_T.to(**move),
        packed=packing(row.cu_seqlens.to(**move), max(b - a for a, b in itertools.pairwise(edges)), edges),
        tiles_nCPP=row.tiles_nCPP.to(**move), tile_starts_n=row.tile_starts_n.to(**move), at_K=at.to(**move),
        labels_K=row.labels_T[at].to(**move), weights_K=row.loss_weights_T[at].to(**move))


class Nvlm(MegatronModule):
    """One (virtual) pipeline stage of NVLM-D.

    Its sub-modules are the components `vision`, `connector` and `language`: names of parameters begin with them, and
    freezing, learning-rate factors and checkpoints speak of them.
    """

    def __init__(self, model: Model, layout: Layout, dtype: torch.dtype, kernels: str, pre_process: bool, post_process: bool,
                 vp_stage: int | None = None):
        config = language_config(model, layout, dtype)
        super().__init__(config)
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.model_type = ModelType.encoder_or_decoder          # these three names are Megatron's schedule's and
        self.share_embeddings_and_output_weights = False        # gradient finaliser's (a tied model has one stage,
        if pre_process:                                         # where its two uses are one parameter)
            small = encoder_config(model, layout, dtype)
            lm, join = model.language, model.connector
            self.vision = VisionEncoder(small, model.vision)
            self.connector = Connector(small, model.vision.hidden, join.shuffle, join.layers, join.hidden or lm.ffn, lm.hidden,
                                       join.norm_eps)
        self.language = Decoder(config, model.language, kernels, pre_process, post_process, vp_stage)

    def set_input_tensor(self, tensor) -> None:
        """Megatron's schedule hands over the previous stage's output."""
        self.language.decoder.set_input_tensor(tensor[0] if isinstance(tensor, list) else tensor)

    def see(self, row: DeviceRow) -> Tensor:
        """Tiles -> [n, tokens, H]. A row without tiles sends one blank through the connector and keeps nothing of it, so that
        every trainable parameter gets a gradient on every rank."""
        features = self.vision(row.tiles_nCPP)
        n = len(features)
        if n == 0:
            features = F.pad(features, (0, 0, 0, 0, 0, 1))
        return self.connector(features)[:n]

    def forward(self, row: DeviceRow, want: str = "loss") -> Tensor:
        """Hidden states [T (/ tensor), 1, H] for the next stage; on the last stage float32 [K] token losses, or with
        want="logits" this rank's vocabulary slice [K, V / tensor]."""
        hidden = splice(self.language.embed(row.tokens_T), self.see(row), row.tile_starts_n) if self.pre_process else None
        hidden = self.language.run(hidden, row.positions_T, row.packed)
        if not self.post_process:
            return hidden
        logits = self.language.logits(hidden, row.at_K)
        return logits if want == "logits" else token_losses(logits, row.labels_K)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        """Layer numbers are part of the names, so that any pipeline split may load them."""
        return super().sharded_state_dict(prefix, sharded_offsets, {"non_homogeneous_layers": True, **(metadata or {})})
