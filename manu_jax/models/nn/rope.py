"""Rotary positions in one dimension, in two (of patches), and in three (M-RoPE).

Su et al. 2021 (arXiv 2104.09864); M-RoPE: Wang et al. 2024 (arXiv 2409.12191). A head's entries are
rotated in pairs, the i-th of the first half with the i-th of the second, as in `transformers`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.types import Array

# Cosines and sines of the angles by which each pair of a head's entries is rotated. [B, T, H / 2]
RotaryAngles = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions. kind "linear" and "llama3" stretch the angles as in `transformers`.

    sections: how many pairs of a head's entries are rotated by the position in time, by row and by
    column; () where a token has one position. is_interleaved: the three take turns from pair to
    pair, and time has what is left (Qwen3-VL); otherwise one comes after the other.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192
    sections: tuple[int, ...] = ()
    is_interleaved: bool = False

    def frequencies_H(self, head_size: int) -> np.ndarray:
        """Return the angle per position of each pair of a head's entries. [H / 2] float32."""
        exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        frequencies = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "linear":
            return frequencies / np.float32(self.factor)
        if self.kind == "llama3":
            wavelengths = 2 * math.pi / frequencies
            span = self.high_frequency_factor - self.low_frequency_factor
            smooth = (self.original_context / wavelengths - self.low_frequency_factor) / span
            smooth = np.clip(smooth, 0, 1).astype(np.float32)
            return (1 - smooth) * frequencies / np.float32(self.factor) + smooth * frequencies
        return frequencies

    def axes_H(self, head_size: int) -> np.ndarray:
        """Return which of the three positions rotates each pair of a head's entries. [H / 2]."""
        if not self.is_interleaved:
            return np.repeat(np.arange(3), self.sections)
        axes_H = np.zeros(head_size // 2, int)
        for axis in (1, 2):
            axes_H[axis : 3 * self.sections[axis] : 3] = axis
        return axes_H


def rotary_angles(positions: Array, rope: Rope, head_size: int) -> RotaryAngles:
    """Return the rotary angles of tokens.

    positions: [B, T], or [B, T, 3] in time, by row and by column.
    """
    frequencies_H = jnp.asarray(rope.frequencies_H(head_size))
    if positions.ndim == 3:
        position_BTH = positions[..., rope.axes_H(head_size)]
    else:
        position_BTH = positions[..., None]
    angles_BTH = position_BTH.astype(jnp.float32) * frequencies_H[None, None]
    return jnp.cos(angles_BTH), jnp.sin(angles_BTH)


def grid_rotary_angles(patch_positions_BT2: Array, head_size: int, theta: float) -> RotaryAngles:
    """Return the rotary angles of patches: half of the pairs by row, the other half by column."""
    quarter = head_size // 4
    frequencies_H = 1.0 / theta ** (jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles_BT2H = (
        patch_positions_BT2[..., None].astype(jnp.float32) * frequencies_H[None, None, None]
    )
    angles_BTH = angles_BT2H.reshape(*patch_positions_BT2.shape[:2], 2 * quarter)
    return jnp.cos(angles_BTH), jnp.sin(angles_BTH)


def rotate(x_BTNH: jax.Array, cos_BTH: jax.Array, sin_BTH: jax.Array) -> jax.Array:
    """Return heads rotated by their positions' angles; cos and sin have half the head size."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTH[:, :, None], sin_BTH[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
