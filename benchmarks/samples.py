"""A sample as good as any for timing, and rows full of it."""

import io

import numpy as np
from PIL import Image

from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch, Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tokenizer import load_tokenizer


def one_sample(words: int, tile_size: int, answer: str = "noise " * 8) -> Sample:
    """A picture of 3 x 2 tiles and a question with `words` words before its answer."""
    pixels = np.random.default_rng(0).integers(0, 256, (2 * tile_size, 3 * tile_size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    turns = Turn("user", "<image>\n" + "what is it " * (words // 3)), Turn("assistant", answer)
    return Sample("sample", "benchmark", (file.getvalue(),), turns)


def full_row(run: Run, sample: Sample) -> PackedBatch:
    """The sample as often as the budgets of a row take it. Any tokenizer does: what words say costs nothing."""
    encoder = Encoder(run.model, run.data, load_tokenizer("tiny"))
    encoded = encoder.encode(sample)
    times = max(1, min(run.data.pack_tokens // encoded.length, run.data.pack_tiles // len(encoded.tiles)))
    return pack_row([encoded] * times, run.data.pack_tokens, encoder.tokenizer.pad_id, run.model.vision.tile_size)
