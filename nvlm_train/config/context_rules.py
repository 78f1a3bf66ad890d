"""Rules of context parallelism: rows that can be cut, and kernels that know of it (see `rules`). DeepSpeed's refusal is with its own."""

import math
from collections.abc import Iterator

from nvlm_train.config.schema import Run
from nvlm_train.config.split import CHUNKS


def context_rows(run: Run) -> Iterator[str]:
    """A row is cut into equal chunks (`model.context`); each rank's tokens are split over tensor-parallel ranks once more."""
    layout, tokens = run.layout, run.data.pack_tokens
    slices = layout.tensor if layout.sequence else 1
    each = layout.context * math.lcm(CHUNKS, slices)
    if layout.context > 1 and tokens % each:
        below = tokens // each * each
        told = f" and layout.sequence over layout.tensor={slices}" if slices > 1 else ""
        yield (f"data.pack_tokens={tokens} must be a multiple of {each} for layout.context={layout.context}{told}: use {below + each}"
               + (f" or {below}" if below >= run.data.max_tokens else ""))


def context_kernels(run: Run) -> Iterator[str]:
    if run.layout.context > 1 and run.model.kernels == "te":
        yield (f"layout.context={run.layout.context} with model.kernels=te: only torch's attention knows of rows that are shared out; use "
               "model.kernels=torch, or layout.context=1")


CONTEXT_RULES = (context_rows, context_kernels)
