"""A model and batches as shapes on a mesh of devices that need not be there.

A plan's programs are those of the run, since their arguments have the run's shapes, dtypes and
shardings. Nothing here holds a weight.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from manu_jax import parallel
from manu_jax.data.batches import Batches
from manu_jax.leaves import path_name
from manu_jax.models.inputs import processing
from manu_jax.models.loaded import Loaded
from manu_jax.types import Batch, BatchShape, Encoded, Modality, VisionInput

ANY_SIZE_PATCHES = 1024  # of an image of any size, where none is known


@dataclasses.dataclass(frozen=True)
class Place:
    """Where arrays lie: a mesh (of devices, or of sizes alone), or one device.

    mesh: None for one device. device: None where nothing is compiled.
    """

    mesh: Any
    device: Any = None

    @classmethod
    def of(cls, sizes: tuple[int, int, int], devices: Sequence[Any] | None) -> "Place":
        """Return the place that a run with this mesh takes. devices: None: sizes alone."""
        if devices is None:
            mesh = AbstractMesh(sizes, parallel.AXES, axis_types=(AxisType.Auto,) * 3)
        else:
            mesh = parallel.make_mesh(*sizes, devices=devices)
        return cls(None if mesh.size == 1 else mesh, None if devices is None else devices[0])

    @property
    def sizes(self) -> tuple[int, int, int]:
        if self.mesh is None:
            return (1, 1, 1)
        data, fsdp, tensor = (self.mesh.shape[axis] for axis in parallel.AXES)
        return data, fsdp, tensor

    def whole(self, tree: Any) -> Any:
        """Return a tree of arrays or shapes as shapes that every device holds."""
        return jax.tree.map(lambda leaf: self._shape(leaf, PartitionSpec()), tree)

    def rows(self, tree: Any) -> Any:
        """Return a tree as shapes whose first axis is split as a batch's (parallel.put_batch)."""
        split = PartitionSpec(parallel.BATCH_AXES)
        return jax.tree.map(lambda leaf: self._shape(leaf, split), tree)

    def activations(self, tree: Any, names: Callable[[Any, Any], Sequence[str | None]]) -> Any:
        """Return a tree as shapes split as `parallel.constrain` does.

        names: (path, leaf) → what each axis of the leaf is called.
        """

        def placed(path: Any, leaf: Any) -> Any:
            if self.mesh is None:
                return self._shape(leaf, PartitionSpec())
            spec = parallel.activation_spec(leaf.shape, names(path, leaf), self.mesh)
            return self._shape(leaf, spec)

        return jax.tree_util.tree_map_with_path(placed, tree)

    def weights(self, tree: Any, dtype: Any = None) -> Any:
        """Return a tree as shapes split as the table of `parallel` says. dtype: None: its own."""

        def placed(path: Any, leaf: Any) -> Any:
            leaf = leaf if dtype is None else jax.ShapeDtypeStruct(leaf.shape, dtype)
            if self.mesh is None:
                return self._shape(leaf, PartitionSpec())
            return self._shape(leaf, parallel.spec_of(path_name(path), leaf.shape, self.mesh))

        return jax.tree_util.tree_map_with_path(placed, tree)

    def bound(self, tree: Any) -> Any:
        """Return a tree like `weights`, as a state that a training binds to its devices."""
        if self.mesh is not None or self.device is None:
            return self.weights(tree)
        lies = SingleDeviceSharding(self.device)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies), tree
        )

    def number(self, value: Any) -> Any:
        """Return a number or a key that the host made before a loop on the mesh began."""
        return jax.ShapeDtypeStruct(value.shape, value.dtype)

    def number_within(self, value: Any) -> Any:
        """Return a number or a key that the host made on the mesh, which then holds it whole."""
        return self.whole(value) if self.mesh is not None else self.number(value)

    def _shape(self, leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        placed: Any = None
        if self.mesh is not None:
            placed = NamedSharding(self.mesh, spec)
        elif self.device is not None and self.device != jax.devices()[0]:
            # On the default device a run binds nothing, and its programs don't say where they run.
            placed = SingleDeviceSharding(self.device)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)


@dataclasses.dataclass(frozen=True)
class PlannedEncoder:
    """Puts encoded samples into batches without a processor. config: the model's."""

    config: Any

    def tokenise_ahead(self, samples: Sequence[Any]) -> None:
        """Do nothing: there are no texts."""

    def encode(self, sample: Any, *, digests: dict[int, bytes] | None = None) -> Encoded:
        raise ValueError("a plan without a processor encodes no samples")

    def collate(self, encoded: Sequence[Encoded], shape: BatchShape | None = None) -> Batch:
        """Return encoded samples as one padded batch (NumPy)."""
        shape = shape or BatchShape()
        return processing.collate(encoded, shape, padding_token=0, sizes=self.config)


def placed_model(loaded: Loaded, place: Place, dtype: Any) -> Loaded:
    """Return a model of shapes with its shapes on the place."""
    model = place.weights(loaded.model, dtype)
    return dataclasses.replace(loaded, model=model, mesh=place.mesh)


def assumed_sample(loaded: Loaded, modality: Modality, *, tokens: int, answers: int) -> Encoded:
    """Return a sample of `tokens` tokens, those of its image among them, as numbers.

    Its values mean nothing. Of an image that is of any size, ANY_SIZE_PATCHES are assumed; of a
    family that cuts images into tiles, one tile.
    """
    config = loaded.config
    vision: tuple[VisionInput, ...] = ()
    index_T = np.full(tokens, -1, np.int32)
    if modality == "image":
        num_patches = ANY_SIZE_PATCHES if config.of_any_size else config.num_patches
        num_features = config.num_features(num_patches)
        if tokens <= num_features + answers:
            raise ValueError(f"{tokens} tokens have no room for {num_features} of an image")
        places = np.zeros((num_patches, 2), np.int32) if config.of_any_size else None
        patches_PC = np.broadcast_to(np.float32(0), (num_patches, config.patch_values))
        vision = (VisionInput(patches_PC, places, num_features),)
        index_T[:num_features] = np.arange(num_features)
    weights_T = np.zeros(tokens, np.float32)
    if answers:
        weights_T[-answers:] = 1
    rope_T3 = None if loaded.family.rope_positions is None else np.zeros((tokens, 3), np.int32)
    ids_T = np.ones(tokens, np.int32)
    return Encoded(ids_T, weights_T, index_T, vision, rope_T3=rope_T3)


@dataclasses.dataclass(frozen=True)
class Work:
    """The batches of a pass over samples: the largest of them, and how much work all are.

    batches: in units of the largest, by tokens. number: of all. shapes: of a batch, as
    `Batches.shapes`.
    """

    batch: Batch
    batches: float
    number: int
    shapes: tuple[tuple[int, int | None], ...]


def work_of(
    encoder: Any, encoded: Sequence[Encoded], size: int, *, rows: int, **settings: Any
) -> Work:
    """Return the Work of one pass over encoded samples in batches of `size`, filled up to `rows`.

    settings: as of `Batches`.
    """
    batches = Batches(encoder, encoded, size, rows=np.arange(rows), **settings)
    steps = range(len(batches))
    sizes = [batches.shape_at(step).length or 0 for step in steps]
    largest = max(steps, key=sizes.__getitem__)
    total = sum(sizes) / sizes[largest]
    return Work(batches.batch_at(largest), total, len(batches), batches.shapes)


def filled(size: int, place: Place) -> int:
    """Return the rows of a batch once they divide over the place's data and fsdp axes."""
    return parallel.filled(size, place.mesh)


def another(tree: Any) -> Any:
    """Return a tree of other arrays of the same shapes; the same shape twice is one array."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def bytes_held(tree: Any) -> int:
    """Return the bytes that one device holds of a tree of placed shapes, each array once."""
    return sum(_held(leaf) for leaf in {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values())


def bytes_used(tree: Any) -> int:
    """Return the bytes that one device reads of a model's weights to run: gathered over fsdp.

    That is of each leaf what `tensor` leaves of it.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        parts = 1
        if isinstance(leaf.sharding, NamedSharding) and "tensor" in jax.tree.leaves(
            tuple(leaf.sharding.spec)
        ):
            parts = leaf.sharding.mesh.shape["tensor"]
        total += math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize // parts
    return total


def replicated(model: Any, mesh: Any) -> dict[str, list[str]]:
    """Return {leaf: the axes that the table wishes and its sizes do not allow}."""
    if mesh is None:
        return {}
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        name = path_name(path)
        wished = parallel.wished_axes(name, len(leaf.shape))
        spec = parallel.spec_of(name, leaf.shape, mesh)
        lost = [
            f"{axis}={mesh.shape[axis]} over {size}"
            for axis, size, given in zip(wished, leaf.shape, spec, strict=False)
            if axis is not None and given is None and axis not in spec and mesh.shape[axis] > 1
        ]
        if lost:
            found[name] = lost
    return found


def by_sizes(neurons: Mapping[str, tuple[int, int]], dtype: Any = jnp.float32) -> dict[str, Any]:
    """Return {tower: shape [L, F]}."""
    return {name: jax.ShapeDtypeStruct(sizes, dtype) for name, sizes in neurons.items()}


def _held(leaf: Any) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    dtype = leaf.dtype
    width = 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype).itemsize
    return math.prod(shape) * width
