"""The loss of one row: cross-entropy of supervised tokens only, weighted, summed, never averaged here.

Dividing by the global weight of the step (all ranks, all rows) is what makes packed = unpacked and DP 1 = DP n.
"""

from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from torch import Tensor


def token_losses(logits_KV: Tensor, labels_K: Tensor) -> Tensor:
    """float32 [K] cross-entropies of vocabulary-parallel logits [K, V / tensor]; exact over the whole vocabulary."""
    return vocab_parallel_cross_entropy(logits_KV.float()[:, None], labels_K[:, None])[:, 0]
