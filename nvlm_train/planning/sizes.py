"""One rank's sizes of one row, and what of it is trained: what the formulas of memory are written in.

All of one rank: where context-parallel ranks share a row, its part (`rows.rank_size`).

Legend: T tokens, S = T / tensor under sequence parallelism (else T), H hidden; q and k the query and key widths of a rank, f its
feed-forward's; K supervised tokens, R readers, M memory tokens, N tiles' patches with class tokens, U tiles' visual tokens; b bytes of
a number in the compute dtype.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

from nvlm_train.config.fp8_layers import by_torch
from nvlm_train.config.recompute import recomputed
from nvlm_train.config.schema import Run
from nvlm_train.config.split import memory_budget
from nvlm_train.geometry import TileGeometry
from nvlm_train.model.parameters import trained_names
from nvlm_train.planning.rows import RowSize, fullest, rank_size

FP32, INT64 = 4, 8


@dataclass(frozen=True)
class Sizes:
    """See the module's legend."""

    run: Run
    row: RowSize

    @property
    def tensor(self) -> int:
        return self.run.layout.tensor

    @property
    def slices(self) -> int:
        return self.tensor if self.run.layout.sequence else 1

    @property
    def b(self) -> int:
        """Bytes of a number in the compute dtype, on a GPU."""
        return FP32 if self.run.model.dtype == "fp32" else 2

    @property
    def compiled(self) -> bool:
        """Whether element-wise parts are single kernels (`model.elementwise`), which keep less."""
        return self.run.model.compile != "off"

    @property
    def S(self) -> int:
        return self.row.tokens // self.slices

    @property
    def exchanged(self) -> int:
        """Rows of what pipeline stages exchange: hidden states, and room for the memory behind them."""
        return (self.row.tokens + memory_budget(self.run.model, self.run.data.pack_tiles, self.tensor)) // self.slices

    @property
    def N(self) -> int:
        v = self.run.model.vision
        return self.row.tiles * (TileGeometry(v.tile_size, v.patch).patches + v.class_token)

    @property
    def U(self) -> int:
        """Visual tokens as the pixel shuffle makes them, before a resampler."""
        v, c = self.run.model.vision, self.run.model.connector
        return self.row.tiles * TileGeometry(v.tile_size, v.patch, c.shuffle).tokens

    @cached_property
    def rounded(self) -> tuple[str, ...]:
        """Linear layers of a decoder layer that torch computes in fp8."""
        return by_torch(self.run.model, self.tensor)

    def input_bytes(self, linear: str) -> int:
        """Of a number of its input that a trained linear layer keeps."""
        return 1 if linear in self.rounded else self.b

    @cached_property
    def again(self) -> frozenset[str]:
        """Parts that are computed again one by one (`config.recompute`)."""
        return recomputed(self.run.model)

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of all trained parameters of the whole model."""
        return trained_names(self.run.model, tuple(self.run.train.trainable))

    def trains(self, *names: str) -> bool:
        """Whether one of the parameters (or of those below a prefix that ends in a dot) is trained."""
        return any(name in (_prefixes(self.trained) if name.endswith(".") else self.trained) for name in names)


def sizes_of(run: Run, row: RowSize | None = None) -> Sizes:
    """One rank's. row: the whole row; default: the fullest that the budgets allow."""
    return Sizes(run, rank_size(run, row or fullest(run)))


@lru_cache(maxsize=64)
def _prefixes(names: frozenset[str]) -> frozenset[str]:
    """Every prefix of a name, up to a dot."""
    return frozenset(name[:at + 1] for name in names for at, letter in enumerate(name) if letter == ".")
