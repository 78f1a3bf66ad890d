"""How likely a model finds given answers, for the study of text ability: the loss of texts that it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nvlm_train.contracts import PackedBatch, Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import Cost, assign, pack_row
from nvlm_train.engine.interface import Engine


@dataclass(frozen=True)
class Loss:
    """total: nats of all supervised tokens of a sample, whose number is `tokens`."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / self.tokens


def losses(engine: Engine, encoder: Encoder, samples: Sequence[Sample]) -> list[Loss]:
    """The loss of each sample's assistant turns, unweighted, in the order of the samples; the same list on every rank.

    The same samples on every rank, which share out the rows. Raises SampleRefused for one that cannot be encoded.
    """
    texts = [encoder.encode(sample) for sample in samples]
    costs = [Cost(text.length, len(text.tiles)) for text in texts]
    data = encoder.data
    mine = {}
    for row in assign(costs, data.pack_tokens, data.pack_tiles, engine.data_size)[engine.data_rank]:
        batch = pack_row([texts[i] for i in row], data.pack_tokens, encoder.tokenizer.pad_id, encoder.geometry.tile_size)
        for place, loss in _of_row(engine, batch).items():
            mine[row[place]] = loss
    found: dict[int, Loss] = {}
    for part in engine.gather_objects(mine):
        found.update(part)
    return [found[i] for i in range(len(texts))]


def _of_row(engine: Engine, row: PackedBatch) -> dict[int, Loss]:
    """Place in the row -> loss. A row without samples is asked too: all ranks make the same number of calls."""
    at = torch.nonzero(row.loss_weights_T > 0).flatten()
    logits_KV = engine.logits(row, at if len(at) else torch.zeros(1, dtype=torch.long))
    if not len(at):
        return {}
    nats_K = torch.nn.functional.cross_entropy(logits_KV, row.labels_T[at].to(logits_KV.device), reduction="none").double().cpu()
    place_K = torch.searchsorted(row.cu_seqlens.long(), at, right=True) - 1
    return {int(place): Loss(float(nats_K[place_K == place].sum()), int((place_K == place).sum())) for place in place_K.unique()}
