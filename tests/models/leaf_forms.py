"""Leaves of every form, and the tensors of the files that hold them; also used by a worker."""

import jax
import ml_dtypes
import numpy as np

from manu_jax import parallel
from manu_jax.models.hf import export
from manu_jax.models.hf.tables import Entry

# Every form of a leaf: transposed, with joint dimensions, split along rows, columns, both or none.
TABLE = [
    Entry("mlp.up_LDF", "layers.{layer}.up.weight", "FD"),
    Entry("mlp.down_LFD", "layers.{layer}.down.weight", "DF"),
    Entry("q_LDNH", "layers.{layer}.q.weight", "(NH)D"),
    Entry("o_LNHD", "layers.{layer}.o.weight", "D(NH)"),
    Entry("qkv_LDZNH", "layers.{layer}.qkv.weight", "(ZNH)D"),
    Entry("norm_LD", "layers.{layer}.norm.weight", "D"),
    Entry("factor_L", "layers.{layer}.factor", ""),
    Entry("embedding_VD", "embed.weight", "VD"),
    Entry("head_DV", "head.weight", "VD"),
]
SHAPES = {
    "mlp.up_LDF": (3, 32, 80), "mlp.down_LFD": (3, 80, 32), "q_LDNH": (3, 32, 4, 8),
    "o_LNHD": (3, 4, 8, 32), "qkv_LDZNH": (3, 32, 3, 4, 8), "norm_LD": (3, 32), "factor_L": (3,),
    "embedding_VD": (600, 32), "head_DV": (32, 600),
}  # fmt: skip


def model(mesh=None, kind="float32", times=1):
    """Leaves of random numbers, by their paths; float32 and bfloat16 by turns for kind "both".

    times: as many neurons and tokens.
    """
    random, found = np.random.default_rng(0), {}
    for number, (path, shape) in enumerate(SHAPES.items()):
        shape = tuple(size * times if size in (80, 600) else size for size in shape)
        both = ("float32", ml_dtypes.bfloat16)[number % 2]
        leaf = random.standard_normal(shape, np.float32).astype(both if kind == "both" else kind)
        place = None if mesh is None else parallel.sharding(path, shape, mesh)
        found[path] = jax.device_put(leaf, place)
    return found


def expected(found, shard_bytes=export.SHARD_BYTES):
    """Yield the tensors of each file, of whole leaves."""
    shard, size = {}, 0
    for entry in TABLE:
        leaf = np.asarray(found[entry.path])
        for layer, name in enumerate(entry.names(leaf.shape)):
            own = leaf[layer] if entry.is_stacked else leaf
            sizes = dict(zip(entry.letters, own.shape, strict=True))
            own = own.transpose([entry.letters.index(c) for group in entry.groups for c in group])
            shape = [int(np.prod([sizes[c] for c in group])) for group in entry.groups]
            if shard and size + own.nbytes > shard_bytes:
                yield shard
                shard, size = {}, 0
            shard[name] = np.ascontiguousarray(own).reshape(shape)
            size += own.nbytes
    yield shard
