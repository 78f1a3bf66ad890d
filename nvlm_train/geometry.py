"""Sizes that follow from tile size, patch and pixel shuffle. The one home of "256 tokens a tile".

Paper section 4.1: a 448-px tile in 14-px patches is 32x32 = 1,024 patches; a 2x2 pixel shuffle makes 256 tokens of them.
"""

from dataclasses import dataclass

FEWER_TILES = (12, 8, 6, 4, 2, 1)   # limits tried in turn when a sample is too long (NVLM's public scripts)


def with_thumbnail(regular: int, thumbnail: bool) -> int:
    """Tiles of a picture cut into `regular` ones, its thumbnail included; a single tile is its own thumbnail."""
    return regular + 1 if thumbnail and regular > 1 else regular


@dataclass(frozen=True)
class TileGeometry:
    """What one tile is made of.

    tile_size and patch are in pixels; shuffle is the side of the pixel-shuffle block (2 halves each side of the grid);
    resampled is the number of tokens that a perceiver resampler makes of a tile (0: no resampler).
    """

    tile_size: int = 448
    patch: int = 14
    shuffle: int = 2
    resampled: int = 0

    @property
    def grid(self) -> int:
        """Patches along one side of a tile (32 for the paper's encoder)."""
        return self.tile_size // self.patch

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def tokens(self) -> int:
        """Visual tokens that one tile gives to the language model (256 for the paper's encoder)."""
        return self.resampled or (self.grid // self.shuffle) ** 2

    def problems(self) -> list[str]:
        """Why this geometry is impossible; empty when it is sound."""
        found = []
        if self.tile_size % self.patch:
            found.append(f"tile size {self.tile_size} px is not a multiple of the patch, {self.patch} px")
        elif self.grid % self.shuffle:
            found.append(f"{self.grid} patches a side cannot be shuffled {self.shuffle}x{self.shuffle}: use a shuffle that divides them")
        return found


def geometry_of(model) -> TileGeometry:
    """The tile geometry of a model's settings (`config.schema.Model`)."""
    return TileGeometry(model.vision.tile_size, model.vision.patch, model.connector.shuffle, model.connector.resampler_tokens)
