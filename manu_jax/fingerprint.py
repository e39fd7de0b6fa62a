"""Short names for weights and samples: what a statistic or a mask was made from."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.leaves import first_name, path_name
from manu_jax.types import Neurons, Sample

EXIF_TURN, UPRIGHT = 0x0112, 1  # the tag, and its value for an image that stays as it is
THREADS = 4  # that take digests; hashing lets others run


def weights_hash(model: Any) -> str:
    """Return 16 hexadecimal digits that depend on every bit of a pytree of arrays.

    The sums are of integers modulo 2³², computed where the weights lie: no weight leaves its
    device, and the result does not depend on the mesh.
    """
    leaves = jax.tree_util.tree_leaves_with_path(model)
    checksums = jax.device_get(_checksums([jnp.asarray(leaf) for _, leaf in leaves]))
    digest = hashlib.sha256()
    for (path, leaf), checksum in zip(leaves, checksums, strict=True):
        name = first_name(path_name(path))  # masks and statistics made before keep their model
        digest.update(f"{name} {leaf.dtype} {leaf.shape} {int(checksum)}\n".encode())
    return digest.hexdigest()[:16]


def samples_hash(samples: Iterable[Sample]) -> str:
    """Return 16 hexadecimal digits that depend on every text, answer mark and pixel, in order."""
    digest, held = hashlib.sha256(), list(samples)
    digests = image_digests(image for sample in held for image in sample.images)
    for sample in held:
        digest.update(f"{sample.key}\0{sample.segments}\0".encode())
        for image in sample.images:
            digest.update(digests[id(image)])
    return digest.hexdigest()[:16]


def image_digests(images: Iterable[Any]) -> dict[int, bytes]:
    """Return the digests of PIL images by their identity, each taken once, by several threads."""
    distinct = {id(image): image for image in images}
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(distinct, pool.map(image_digest, distinct.values()), strict=True))


def image_digest(image: Any) -> bytes:
    """Return the SHA-256 of all of a PIL image that an image processor looks at.

    These are mode, size and pixels, and where it has them the palette, the transparent colour and
    the turn that EXIF asks for. It takes about 0.5 ms for 336 × 336 pixels.
    """
    content = hashlib.sha256(f"{image.mode} {image.size}\0".encode())
    content.update(image.tobytes())
    turn = image.getexif().get(EXIF_TURN, UPRIGHT)
    marks = (image.getpalette("RGBA"), image.info.get("transparency"), turn)
    if marks != (None, None, UPRIGHT):
        content.update(repr(marks).encode())
    return content.digest()


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        bits = leaf.astype(jnp.uint32)
    else:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(
            jnp.uint32, bits.shape, axis
        )
    # Odd multipliers: two weights that change places change the sum.
    mixed = (bits ^ (bits >> np.uint32(15))) * (position * np.uint32(2654435761) | np.uint32(1))
    return jnp.sum(mixed, dtype=jnp.uint32)


def neurons_hash(*groups: Neurons) -> str:
    """Return a hash of values of neurons, [L, F] for each tower, taken as float32: 16 digits."""
    digest = hashlib.sha256()
    for values in groups:
        for tower, values_LF in sorted(values.items()):
            digest.update(f"{tower}\0".encode() + np.asarray(values_LF, np.float32).tobytes())
    return digest.hexdigest()[:16]
