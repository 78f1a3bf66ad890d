"""The hook for a model that scores how well text and pictures fit: `module:factory` or `module:factory=ARGUMENT`.

The factory is called once in each process, with the argument if there is one, and returns a `Scorer`. data_prep/curate/clip.py
is one: LAION-400M kept pairs whose CLIP cosine was 0.3 or more (arXiv:2111.02114). Such scores favour captions that spell out the
letters in a picture (T-MARS, arXiv:2307.03132); text-rich data should not be filtered by them at all.
"""

import importlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from nvlm_train.contracts import Sample
from nvlm_train.data.images import decode
from nvlm_train.errors import DataError, SampleRefused


class Scorer(Protocol):
    """How well pictures and text fit: higher is better, on a scale of the scorer's own."""

    def __call__(self, images: Sequence[np.ndarray], text: str) -> float:
        """images: uint8 [height, width, 3] each, one at least. text: the answers, a line each. The same for the same input."""


@lru_cache(maxsize=4)
def load_scorer(spec: str) -> Scorer:
    """Raises DataError: the spec is not of that form, cannot be imported, or makes nothing that can be called."""
    module, _, factory = spec.partition(":")
    name, with_argument, argument = factory.partition("=")
    if not (module and name):
        raise DataError(f"--scorer {spec!r}: expected module:factory, such as data_prep.curate.clip:load=FOLDER")
    try:
        scorer = getattr(importlib.import_module(module), name)(*([argument] if with_argument else []))
    except (ImportError, AttributeError, TypeError) as error:
        raise DataError(f"--scorer {spec}: {error}. The module must be importable from here (PYTHONPATH=.)") from error
    if not callable(scorer):
        raise DataError(f"--scorer {spec}: {name}() gave {type(scorer).__name__}, which cannot be called with (images, text)")
    return scorer


def score(sample: Sample, spec: str, at_least: float) -> float:
    """Score of a sample with pictures. Raises SampleRefused("low_score") with score and limit; a NaN is a low score."""
    text = "\n".join(turn.text for turn in sample.turns if turn.role == "assistant")
    value = float(load_scorer(spec)([decode(image) for image in sample.images], text))
    if math.isnan(value) or value < at_least:
        raise SampleRefused("low_score", f"{value:.4g}, at least {at_least:g} is asked")
    return value
