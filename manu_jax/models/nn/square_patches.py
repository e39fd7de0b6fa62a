"""What towers of square images have in common: a grid of square patches, heads of one width."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SquarePatches:
    """The base of a tower's config. image_size, patch_size: pixels a side."""

    image_size: int
    patch_size: int
    width: int
    num_heads: int

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def patch_values(self) -> int:
        """Numbers of a patch."""
        return self.patch_size**2 * 3

    @property
    def num_patches(self) -> int:
        return self.side**2

    @property
    def num_key_heads(self) -> int:
        return self.num_heads

    @property
    def head_size(self) -> int:
        return self.width // self.num_heads
