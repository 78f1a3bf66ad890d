"""The vision encoder: uint8 tiles in, patch features out. InternViT (paper section 4.1), CLIP and SigLIP differ by settings only.

| | norm | before, behind the layers | class token | patch bias | QKV bias | QK norm | LayerScale | activation |
|---|---|---|---|---|---|---|---|---|
| InternViT-6B | RMS | none | yes | yes | no | full width | yes | GELU |
| InternViT-300M | layer | none | yes | yes | yes | no | yes | GELU |
| CLIP | layer | norm, none | yes | no | yes | no | no | quick GELU |
| SigLIP | layer | none, norm | no | yes | yes | no | no | GELU, tanh form |

CLIP's own norm behind the layers serves its class token, not the patches. Designs that take CLIP's second-to-last layer (LLaVA) say so
by `layers`, one less than published.
"""

from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from nvlm_train.config.schema import Vision
from nvlm_train.geometry import TileGeometry
from nvlm_train.model.norm import NORMS
from nvlm_train.model.recompute import again
from nvlm_train.model.sharing import TileShare
from nvlm_train.model.vision_layer import VisionLayer


class Layers(nn.ModuleList):
    """A module list that lets each layer describe its own sharding (Megatron takes a plain list for replicated)."""

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        state = {}
        for number, layer in enumerate(self):
            state.update(layer.sharded_state_dict(f"{prefix}{number}.", sharded_offsets, metadata))
        return state


class VisionEncoder(MegatronModule):
    """uint8 tiles in, patch features out; a class token is dropped, the last layer's (normed) output is the feature.

    share: the tiles are shared out over tensor-parallel ranks, each of which has the whole encoder; None: its weights are split.
    recompute: its layers are computed again in the backward pass. compiled: a frozen encoder's layers take single kernels for what
    stands between their products (`vision_frozen`).
    """

    def __init__(self, config, vision: Vision, share: TileShare | None = None, recompute: bool = False, compiled: bool = False):
        super().__init__(config)
        self.share, self.recompute, self.compiled = share, recompute, compiled
        place = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
        self.patch = vision.patch
        tokens = TileGeometry(vision.tile_size, vision.patch).patches + vision.class_token
        self.patch_weight = nn.Parameter(torch.empty(vision.hidden, 3, vision.patch, vision.patch, **place))
        self.patch_bias = nn.Parameter(torch.zeros(vision.hidden, **place)) if vision.patch_bias else None
        self.class_token = nn.Parameter(torch.empty(1, 1, vision.hidden, **place)) if vision.class_token else None
        self.position = nn.Parameter(torch.empty(1, tokens, vision.hidden, **place))
        self.first_norm, self.final_norm = (NORMS[vision.norm](config, vision.hidden, vision.norm_eps) if wanted else None
                                            for wanted in (vision.first_norm, vision.final_norm))
        group = share and share.alone
        self.layers = Layers(VisionLayer(config, vision, group) for _ in range(vision.layers))
        self.set_colours(vision)

    def set_colours(self, vision: Vision) -> None:
        """Mean and spread of the colours that it was trained on, of 0 to 255; float32 whatever the weights are."""
        for name in ("mean", "std"):
            colours = 255 * torch.tensor(getattr(vision, name), dtype=torch.float32, device=torch.cuda.current_device())
            self.register_buffer(name, colours.view(1, 3, 1, 1), persistent=False)

    def forward(self, tiles_nCPP: Tensor) -> Tensor:
        """uint8 [n, 3, P, P] -> [n, patches, C]. n may be 0. Runs without autograd when the encoder is frozen."""
        trained = any(p.requires_grad for p in self.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            encode = partial(self._encode, compiled=self.compiled and not trained)
            return encode(tiles_nCPP) if self.share is None else self.share.see(encode, tiles_nCPP)

    def _encode(self, tiles_nCPP: Tensor, compiled: bool) -> Tensor:
        x = self._embed(tiles_nCPP)
        for layer in self.layers:
            x = again(layer, x) if self.recompute else layer(x, compiled and len(x) > 0)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x if self.class_token is None else x[:, 1:]

    def _embed(self, tiles_nCPP: Tensor) -> Tensor:
        """What enters the first layer, [n, L, C]."""
        planes = tiles_nCPP.to(torch.float32, memory_format=torch.contiguous_format)     # colours come interleaved
        pixels = ((planes - self.mean) / self.std).to(self.patch_weight.dtype)
        x = F.conv2d(pixels, self.patch_weight, self.patch_bias, stride=self.patch).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), -1, -1), x), 1)
        x = x + self.position
        return x if self.first_norm is None else self.first_norm(x)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        return state if self.share is None else self.share.as_replicas(state)
