"""Where D, X and H differ: what of an image enters the token sequence. (X and H add: what is cross-attention memory.)"""

import torch
from torch import Tensor


def splice(hidden_T1H: Tensor, features_ntH: Tensor, tile_starts_n: Tensor) -> Tensor:
    """NVLM-D (paper section 4.2): every tile's tokens stand in the sequence, at `tile_starts_n`, in place of placeholders.

    hidden_T1H: embedded tokens; features_ntH: n tiles of t tokens. With n = 0 the features still join the graph, so the
    connector gets a zero gradient and no rank waits for another.
    """
    n, t, width = features_ntH.shape
    at = (tile_starts_n[:, None] + torch.arange(t, device=hidden_T1H.device)).flatten()
    return hidden_T1H.index_copy(0, at, features_ntH.reshape(n * t, 1, width).to(hidden_T1H.dtype))
