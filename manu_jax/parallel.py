"""Meshes, shardings and processes: everything that knows how many devices there are.

A weight's sharding follows from the letters that end its name: `up_LDF` is [layers, width,
neurons], and

    letter                        mesh axis
    F neurons, N heads, K heads   tensor
    V vocabulary                  tensor
    D width                       fsdp (in matrices; vectors stay whole)
    L layers, R rank, and others  none

`EXCEPTIONS` lists the leaves for which the letters are not enough. An axis that does not divide a
dimension is dropped for that leaf, and logged once. Batches are split over `data` and `fsdp`.

Several processes run the same program on one mesh and one shared folder. All compute, each on the
rows of a batch that its devices hold; the first decides what there is to do, and writes. A command
that fails on one of them ends on all (faults.py).
"""

import contextlib
import functools
import logging
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # of the keys that processes share there is no public name
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from manu_jax import faults, stores
from manu_jax.folder import expand_path, explained
from manu_jax.leaves import path_name
from manu_jax.types import ManuError

logger = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
LETTER_AXES = {"F": "tensor", "N": "tensor", "K": "tensor", "V": "tensor", "D": "fsdp"}
# On disk query, key and value are one dimension, so that its heads can't be read apart.
EXCEPTIONS: dict[str, tuple[str | None, ...]] = {
    "qkv_LDZNH": (None, "fsdp", None, None, None),
    "qkv_bias_LZNH": (None, None, None, None),
}
ACTIVATION_AXES: dict[str | None, Any] = {
    "batch": BATCH_AXES,
    "shared batch": "data",  # that the devices of fsdp look at together
    "width": "fsdp",
    "neurons": "tensor",
    "heads": "tensor",
    "vocabulary": "tensor",
    None: None,
}
LEAF_NAME = re.compile(r"([a-z0-9_]+_([A-Z]+))(?:\.value)?$")
SHUTDOWN_SECONDS = 60  # how long a process that ends waits for the others, which then end too
SHARED_SECONDS = 60  # how long a new file may take to be seen by all
MESSAGE_BYTES = 4096
IS_STRICT = False  # whether one process finds, too, what would make several hang; tests set it
_is_alone = False  # the first process does something while the others wait

Bounds = tuple[tuple[int, int], ...]  # of each axis: start and stop


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Return the mesh of axes (data, fsdp, tensor); one size may be −1: the devices that are left.

    Uses the first data·fsdp·tensor of `devices` (default: all); ManuError where too few are.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(data, fsdp, tensor, count=len(devices))
    needed = math.prod(sizes)
    kinds = (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices[:needed])
    except (
        NotImplementedError
    ):  # as data=2, tensor=8 on 4 × 4 chips of v6e: no axis is of that size
        grid = mesh_utils.create_device_mesh(
            sizes, devices[:needed], allow_split_physical_axes=True
        )
        return Mesh(grid, AXES, axis_types=kinds)


def mesh_sizes(data: int, fsdp: int, tensor: int, *, count: int) -> tuple[int, int, int]:
    """Return the sizes of a mesh of at most `count` devices; one may be −1: those that are left.

    Raises ManuError for other sizes, and where too few devices are there.
    """
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ManuError(
            f"mesh: sizes are positive, and one at most is −1; got data={data}, fsdp={fsdp}, "
            f"tensor={tensor}."
        )
    if -1 in sizes:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = max(count // known, 1)
    needed = math.prod(sizes)
    if needed > count:
        raise ManuError(
            f"mesh: data={sizes[0]} × fsdp={sizes[1]} × tensor={sizes[2]} needs {needed} devices, "
            f"there are {count}. Lower a size, or set one to −1 to use what is there."
        )
    return sizes[0], sizes[1], sizes[2]


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Return the PartitionSpec of the leaf whose path ends in `name` ("….mlp.up_LDF")."""
    match = LEAF_NAME.search(name)
    axes = list(wished_axes(name, len(shape)))
    leaf = "" if match is None else match.group(1)
    for i, axis in enumerate(axes):
        if axis is not None and axis in axes[:i]:
            axes[i] = None
        elif axis is not None and shape[i] % mesh.shape[axis]:
            _log_dropped(leaf, axis, shape[i], mesh.shape[axis])
            axes[i] = None
    return PartitionSpec(*axes)


def wished_axes(name: str, num_axes: int) -> tuple[str | None, ...]:
    """Return the mesh axis that the table gives each dimension of a leaf, whatever its size."""
    match = LEAF_NAME.search(name)
    if match is None or len(match.group(2)) != num_axes:
        return ()
    leaf, letters = match.groups()
    if leaf in EXCEPTIONS:
        return EXCEPTIONS[leaf]
    is_matrix = len(letters.replace("L", "")) > 1
    return tuple(LETTER_AXES.get(c) if is_matrix or c != "D" else None for c in letters)


def sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Return the NamedSharding of a weight by the end of its path; see the module docstring."""
    return NamedSharding(mesh, spec_of(name, shape, mesh))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return the tree of NamedShardings of a pytree of weights (arrays or shapes)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: sharding(path_name(path), leaf.shape, mesh), tree
    )


def bounds_of(index: Any, shape: Sequence[int]) -> Bounds:
    """Return start and stop of each axis, of the slices by which JAX says what a device holds."""
    pairs = (piece.indices(size) for piece, size in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in pairs)


def constrain(array: jax.Array, *names: str | None) -> jax.Array:
    """Fix how an activation is split: a name of ACTIVATION_AXES per dimension. No mesh: no-op."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    spec = activation_spec(array.shape, names, mesh)
    return jax.lax.with_sharding_constraint(array, spec)


def activation_spec(shape: Sequence[int], names: Sequence[str | None], mesh: Any) -> PartitionSpec:
    """Return how an activation is split by names of ACTIVATION_AXES; axes that divide nothing are
    dropped."""
    axes = [ACTIVATION_AXES[name] for name in names]
    for i, axis in enumerate(axes):
        size = math.prod(mesh.shape[a] for a in (axis if isinstance(axis, tuple) else (axis,)) if a)
        if axis is not None and shape[i] % size:
            axes[i] = None
    return PartitionSpec(*axes)


def rows_of(table_VD: jax.Array, ids_BT: Any) -> jax.Array:
    """Return the rows of a table whose width is split. [B, T, D], split as a batch.

    The devices of fsdp look up the ids of all of them, each in its part of the width, and exchange
    what they found. Left to itself, XLA gathers the whole table.
    """
    ids_BT = constrain(jax.numpy.asarray(ids_BT), "shared batch", None)
    rows_BTD = constrain(table_VD[ids_BT], "shared batch", None, "width")
    return constrain(rows_BTD, "batch", None, None)


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Set the mesh that `constrain` sees while a function is traced; None: no mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def batch_multiple(mesh: Mesh | None) -> int:
    """Return the number that a global batch size has to be a multiple of."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def filled(size: int, mesh: Mesh | None) -> int:
    """Return a batch size rounded up to a multiple of the mesh's data and fsdp axes."""
    multiple = batch_multiple(mesh)
    return -(-size // multiple) * multiple


def batch_rows(mesh: Mesh | None, batch_size: int) -> np.ndarray:
    """Return which rows of a global batch the devices of this process hold, in order.

    batch_size: a multiple of `batch_multiple`. All rows where this is the only process.
    """
    if mesh is None or jax.process_count() == 1:
        return np.arange(batch_size)
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    held = split.addressable_devices_indices_map((batch_size,)).values()
    bounds = sorted({index[0].indices(batch_size)[:2] for index in held if index is not None})
    return np.concatenate([np.arange(start, end) for start, end in bounds])


def put_batch(batch: Any, mesh: Mesh | None) -> Any:
    """Place a host batch, or any arrays of its rows, split over `data` and `fsdp`.

    With several processes each gives its own rows of the global batch (`batch_rows`).
    """
    if mesh is None:
        return jax.tree.map(_on_device, batch)
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split, np.asarray(x)), batch
    )


def put_replicated(tree: Any, mesh: Mesh | None) -> Any:
    """Place a pytree whole on every device."""
    if mesh is None:
        return jax.tree.map(_on_device, tree)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def move(leaves: dict[str, Any], mesh: Mesh) -> None:
    """Lay leaves {path: array} out over another mesh of the same devices, each in its place.

    They go from device to device, one after the other, and a stacked one layer by layer: XLA may
    gather on every device what it moves. A leaf that nothing else holds is freed before the next
    one moves.
    """
    for name in leaves:
        leaf, place = leaves[name], sharding(name, leaves[name].shape, mesh)
        in_order = Mesh(mesh.devices.reshape(leaf.sharding.mesh.devices.shape), AXES)
        before = NamedSharding(in_order, leaf.sharding.spec)
        leaf = jax.device_put(leaf, before)
        leaves[name] = laying_out(before, place)(leaf).block_until_ready()


@functools.cache
def laying_out(before: NamedSharding, place: NamedSharding) -> Any:
    """Return what lays a leaf out over another mesh of the same devices in the same order."""

    def put(layer: jax.Array) -> jax.Array:
        for one in (before, place):
            spec = PartitionSpec(*one.spec[1:])
            layer = jax.lax.with_sharding_constraint(layer, NamedSharding(one.mesh, spec))
        return layer

    def laid_out(leaf: jax.Array) -> jax.Array:
        return jax.lax.map(put, leaf) if leaf.ndim > 2 and place.spec[0] is None else leaf

    return jax.jit(laid_out, in_shardings=before, out_shardings=place)


def gather(tree: Any) -> Any:
    """Return a pytree of arrays as NumPy, whole, on every process.

    What all processes hold already, as NumPy or on devices, is taken as it is.
    """

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def join() -> None:
    """Join the job's processes, and watch for faults of theirs; ManuError where there are none."""
    if jax.distributed.is_initialized():
        return
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, *numbers = (os.environ.get(name) for name in names)
    try:
        count, number = (None if text is None else int(text) for text in numbers)
        jax.distributed.initialize(
            address, count, number, shutdown_timeout_seconds=SHUTDOWN_SECONDS
        )
        is_time_to_stop = multihost_utils.reached_preemption_sync_point
        faults.watch(distributed.global_state, is_time_to_stop=is_time_to_stop)
    except (ValueError, RuntimeError) as error:
        raise ManuError(
            f"mesh.distributed: the other processes can't be joined ({error}). Outside of TPU pods "
            f"and SLURM set {', '.join(names)}."
        ) from error


def is_first_process() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


def on_first_process(action: Callable[[], Any]) -> None:
    """Let the first process do something while the others wait; its error is raised by all.

    action: does nothing that the others have a part in.
    """
    _check_together("on_first_process")
    if jax.process_count() == 1:
        return _by_itself(action)
    fault = None
    message = np.zeros(MESSAGE_BYTES, np.int32)
    if is_first_process():
        try:
            _by_itself(action)
        except (ManuError, OSError) as error:
            fault = explained(error) if isinstance(error, OSError) else error
            text = str(fault).encode()[:MESSAGE_BYTES]
            message[: len(text)] = np.frombuffer(text, np.uint8)
    told = multihost_utils.broadcast_one_to_all(message).astype(np.uint8).tobytes().rstrip(b"\0")
    if fault is not None:
        raise fault
    if told:
        raise ManuError(told.decode(errors="ignore"))


def _by_itself(action: Callable[[], Any]) -> None:
    global _is_alone
    _is_alone = True
    try:
        action()
    finally:
        _is_alone = False


def _check_together(name: str) -> None:
    """Raise where the first process is alone in a call that all have a part in; it would hang."""
    if _is_alone and (IS_STRICT or jax.process_count() > 1):
        raise RuntimeError(f"parallel.{name}: all processes call it together, not the first alone")


def broadcast(number: int) -> int:
    """Return the first process's number on all processes, which wait for it."""
    _check_together("broadcast")
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def exists(path: str | os.PathLike) -> bool:
    """Whether a file or whole folder stands: the first process looks, the others wait to see it.

    So all take the same way, and read nothing that is still being written. Raises ManuError where a
    process does not come to see what the first one does.
    """
    place = expand_path(path)
    # The others don't look before: on a network disk they would go on seeing that nothing is there.
    is_there = bool(broadcast(is_first_process() and stores.stands(place)))
    start = time.monotonic()
    while is_there and not stores.stands(place):
        if time.monotonic() - start > SHARED_SECONDS:
            raise ManuError(
                f"{path}: the first process sees it, process {jax.process_index()} does not. "
                "Several processes need a folder that they share."
            )
        time.sleep(0.1)
    return is_there


def wait_for_all(name: str) -> None:
    """Go on when every process has come here; `name` is the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _on_device(leaf: Any) -> jax.Array:
    """Return a copy on the device; `asarray` would compile a program for each shape."""
    return leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf, may_alias=False)


@functools.cache
def _log_dropped(leaf: str, axis: str, size: int, parts: int) -> None:
    logger.info(
        "%s: its dimension of %d is not split over %s=%d (no divisor)", leaf, size, axis, parts
    )
