"""All that the training loop knows of machines. Megatron and DeepSpeed implement it."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

import torch

from nvlm_train.contracts import PackedBatch, StepBatch, StepReport
from nvlm_train.engine.weights_folder import WeightsFolder
from nvlm_train.model.cache import CacheRow
from nvlm_train.model.nvlm import Nvlm


class Engine(Protocol):
    """A model laid out on devices, its optimizer and its collectives."""

    rank: int
    device: torch.device
    is_main: bool               # exactly one rank of the job logs and writes run files
    data_rank: int              # this rank's place among the data-parallel replicas
    data_size: int
    reads_data: bool            # exactly one rank of a model replica loads; `shared` hands its batches to the others
    dtype: torch.dtype          # of weights and activations
    token_multiple: int           # tokens: the length of every row is a multiple of it

    @property
    def work_s(self) -> float:
        """Seconds of the last step from where all ranks began together to where this one waited for the gradients of all."""

    def stages(self) -> Sequence[Nvlm]:
        """This rank's (virtual) pipeline stages, unwrapped: for who looks at the modules themselves."""

    def shared(self, batches: Iterable[StepBatch] | None) -> Iterator[StepBatch]:
        """The reading rank's batches on every rank of its replica, in lockstep; the others pass None."""

    def train_step(self, batch: StepBatch, lr: float) -> StepReport:
        """Forward, backward and one optimizer update over all rows of the step. Same report on every rank."""

    def evaluate(self, rows: Iterable[PackedBatch]) -> dict[str, tuple[float, float]]:
        """Source -> (weighted loss sum, weight sum) over all ranks' rows, without gradients. Same number of rows on every rank."""

    def logits(self, row: PackedBatch, at: torch.Tensor, held: CacheRow | None = None) -> torch.Tensor:
        """Float32 [K, V] next-token logits at the K row positions `at`, the same on every rank (vocabulary gathered, and
        broadcast from the last pipeline stage). held: what a KV cache keeps of the row, or holds before it (`model.cache`). Every
        model-parallel rank calls it with the same row, each with its own cache. For generation and tests."""

    def see(self, row: PackedBatch) -> torch.Tensor | None:
        """[n, L, C] what the vision encoder makes of a row's tiles, without gradients, in host memory; None on ranks without the
        encoder. Every rank of a replica calls it with the same row."""

    def encoder_fingerprint(self) -> str:
        """16 hex digits that name the vision encoder's weights, the same under every layout and on every rank. A collective."""

    def sharded_state(self, loading: bool, optimizer: bool = True) -> dict:
        """Megatron sharded state dict of model and optimizer (keys `model`, `optimizer`), for the checkpoint frame. Describing the
        optimizer for loading fills its state with placeholders: leave it out when only weights are loaded."""

    def load_state(self, state: dict) -> None:
        """Take back what `sharded_state` described, once filled."""

    def load_weights(self, weights: WeightsFolder, components: Collection[str]) -> None:
        """Fill components (`vision`, `connector`, `language`; with `cross_attention`, the language model's too) from a folder of
        weights that was found to fit. All ranks call it; each reads its own parts. The optimizer restarts from them."""

    def gather_objects(self, value) -> list:
        """One Python object of every rank, in rank order, on every rank."""

    def any_rank(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""

    def barrier(self) -> None:
        """Wait for every rank."""

    def close(self) -> None:
        """Free the layout's groups and memory. The next stage may build another engine in the same job."""
