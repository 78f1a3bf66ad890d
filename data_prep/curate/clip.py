"""A CLIP model from a local folder, as a scorer: `--scorer data_prep.curate.clip:load=FOLDER --min-score 0.28`.

The folder is one as the Hugging Face hub stores it: config.json, model.safetensors, tokenizer.json (CLIPModel; arXiv:2103.00020).
The score is the cosine between picture and text, of several pictures the highest. Texts are cut at the model's 77 tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from nvlm_train.errors import DataError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)    # of OpenAI's training pictures, RGB
HEAD = 64       # width of an attention head in every CLIP that was published, where config.json does not say the number of heads

_FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class _Tower:
    """One of the two encoders. weights: without the tower's prefix; causal: a token sees those before it only."""

    weights: Mapping[str, torch.Tensor]
    heads: int
    layers: int
    quick_gelu: bool
    eps: float
    causal: bool

    def encode(self, x_SH: torch.Tensor) -> torch.Tensor:
        """Embedded patches or tokens [S, H] through all layers, [S, H]."""
        for number in range(self.layers):
            name = f"encoder.layers.{number}"
            x_SH = x_SH + self._attend(self.norm(f"{name}.layer_norm1", x_SH), f"{name}.self_attn")
            hidden = self._linear(f"{name}.mlp.fc1", self.norm(f"{name}.layer_norm2", x_SH))
            hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden)
            x_SH = x_SH + self._linear(f"{name}.mlp.fc2", hidden)
        return x_SH

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.eps)

    def _attend(self, x_SH: torch.Tensor, name: str) -> torch.Tensor:
        query, key, value = (self._linear(f"{name}.{part}_proj", x_SH).unflatten(-1, (self.heads, -1)).transpose(0, 1)
                             for part in "qkv")
        mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=self.causal)[0]
        return self._linear(f"{name}.out_proj", mixed.transpose(0, 1).flatten(1))

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


class Clip:
    """Cosine of pictures and a text, -1 to 1."""

    def __init__(self, weights: Mapping[str, torch.Tensor], config: Mapping, tokenizer: Tokenizer):
        """Raises KeyError if a weight is missing."""
        self._vision = _tower(weights, config, "vision")
        self._text = _tower(weights, config, "text")
        self._projections = weights["visual_projection.weight"], weights["text_projection.weight"]
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(len(self._text.weights["embeddings.position_embedding.weight"]))
        patch = self._vision.weights["embeddings.patch_embedding.weight"].shape[-1]
        places = len(self._vision.weights["embeddings.position_embedding.weight"]) - 1      # one is the class token's
        self._side = round(places ** 0.5) * patch

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], text: str) -> float:
        """images: uint8 [height, width, 3], one at least."""
        of_text = self._of_text(text)
        return max(float(F.cosine_similarity(self._of_image(image), of_text, dim=0)) for image in images)

    def _of_image(self, image: np.ndarray) -> torch.Tensor:
        tower = self._vision
        pixels_CHW = (_squared(image, self._side) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        kernel = tower.weights["embeddings.patch_embedding.weight"]
        patches = F.conv2d(pixels_CHW[None], kernel, stride=kernel.shape[-1])[0].flatten(1).T
        embedded = torch.cat([tower.weights["embeddings.class_embedding"][None], patches])
        embedded = tower.norm("pre_layrnorm", embedded + tower.weights["embeddings.position_embedding.weight"])
        return self._projections[0] @ tower.norm("post_layernorm", tower.encode(embedded)[0])

    def _of_text(self, text: str) -> torch.Tensor:
        tower = self._text
        ids = torch.tensor(self._tokenizer.encode(text).ids)
        embedded = tower.weights["embeddings.token_embedding.weight"][ids]
        encoded = tower.encode(embedded + tower.weights["embeddings.position_embedding.weight"][:len(ids)])
        return self._projections[1] @ tower.norm("final_layer_norm", encoded[-1])     # the end token's, which has seen all


def load(folder: str) -> Clip:
    """Raises DataError: a file is missing or damaged, or holds another kind of model."""
    path = Path(folder).expanduser()
    if missing := [name for name in _FILES if not (path / name).is_file()]:
        raise DataError(f"no CLIP model at {path}: {', '.join(missing)} missing")
    torch.set_num_threads(1)    # a pass has a process for each core
    try:
        config = json.loads((path / _FILES[0]).read_text(encoding="utf-8"))
        weights = {name: tensor.float() for name, tensor in load_file(path / _FILES[1]).items()}
        return Clip(weights, config, _tokenizer(path / _FILES[2]))
    except KeyError as error:
        raise DataError(f"{path / _FILES[1]} has no weight {error}: it is not a CLIPModel with both encoders") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CLIP model: {error}") from error


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:      # the library raises no type of its own
        raise DataError(f"{path} cannot be read as a tokenizer: {error}") from error


def _tower(weights: Mapping[str, torch.Tensor], config: Mapping, kind: str) -> _Tower:
    prefix, settings = f"{kind}_model.", config.get(f"{kind}_config") or {}
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    width = own["embeddings.position_embedding.weight"].shape[1]
    layers = 1 + max((int(name.split(".")[2]) for name in own if name.startswith("encoder.layers.")), default=-1)
    quick_gelu = settings.get("hidden_act", "quick_gelu") == "quick_gelu"
    return _Tower(own, settings.get("num_attention_heads", width // HEAD), layers, quick_gelu, settings.get("layer_norm_eps", 1e-5),
                  causal=kind == "text")


def _squared(image: np.ndarray, side: int) -> torch.Tensor:
    """The middle of a picture whose shorter side was brought to `side` pixels: float [3, side, side], 0 to 255."""
    picture = Image.fromarray(image)
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((side * width // short, side * height // short), Image.Resampling.BICUBIC)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    cropped = np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32)
    return torch.from_numpy(cropped).permute(2, 0, 1)
