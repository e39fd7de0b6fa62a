"""Safetensors to sharded leaves.

filling.py fills a leaf: each host reads what its devices hold, or its part of what all exchange.
Every tensor on disk is used exactly once and every leaf is filled, or one error lists all that is
missing, left over and misshaped.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from manu_jax import parallel, stores
from manu_jax.leaves import path_name
from manu_jax.models.hf.files import weight_files
from manu_jax.models.hf.filling import Filling
from manu_jax.models.hf.reading import DTYPES, Reader, Tensor
from manu_jax.models.hf.tables import Entry
from manu_jax.types import ManuError, raise_faults

logger = logging.getLogger(__name__)

# What wrappers put before every name: DataParallel, torch.compile, FSDP, PEFT.
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")
# What a part of a name says of how the file came to be, and the remedy.
CAUSES = {
    ".lora_": "they are a LoRA adapter's: write the model after merge_and_unload()",
    ".base_layer.": "they are a PEFT model's: write the model after merge_and_unload()",
    ".modules_to_save.": "they are a PEFT model's: write the model after merge_and_unload()",
    "_orig_mod.": "they come of torch.compile: write the module from before it was compiled",
    "_fsdp_wrapped_module.": "they come of FSDP: write its full state dict",
    "module.": "they come of DataParallel: write its .module",
    "base_model.model.": "they are a PEFT model's: write the model after merge_and_unload()",
}
VALUES_COMPARED = 2**24  # at a time, so that a large embedding needs no second copy


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A folder's tensors against a model's: what fits, and what does not."""

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    misshaped: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.left_over or self.misshaped)

    def refuse(self, where: str) -> None:
        """Raise one ManuError with everything that does not fit; return where all does."""
        lists = {
            "missing": self.missing,
            "left over": self.left_over,
            "of another shape": self.misshaped,
        }
        if not self.fits:
            listed = "\n".join(
                f"  {len(names)} {what}: {', '.join(names)}"
                for what, names in lists.items()
                if names
            )
            raise ManuError(
                f"{where}: its tensors do not fit its config.json:\n{listed}\n{self._remedy()}"
            )

    def _remedy(self) -> str:
        for part, cause in CAUSES.items():
            names = [name for name in self.left_over if part in name]
            if names:
                return f"Of those left over {len(names)} have {part!r} in their names: {cause}."
        return "Is the download complete, and config.json the one that came with it?"


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Return {name as stored: Tensor} of the safetensors files that `weight_files` chooses.

    Raises ManuError for what that refuses, a damaged file, and a name that two files hold.
    """
    from safetensors import SafetensorError

    found: dict[str, Tensor] = {}
    faults = []
    for file in weight_files(path):
        try:
            for tensor in _tensors_of(file):
                name = tensor.stored_name
                if name in found:
                    faults.append(f"{name} stands in {found[name].file.name} and {file.name}")
                found[name] = tensor
        except (SafetensorError, OSError, ValueError) as error:
            faults.append(f"{file.name} is damaged or cut short ({error})")
    raise_faults(faults, f"{path}: its weights can't be read. Download the files again.")
    return found


def with_export_names(
    tensors: Mapping[str, Tensor],
    name_prefixes: Mapping[str, Mapping[str, str]],
    ignored: Sequence[str],
) -> tuple[str, dict[str, Tensor]]:
    """Return the form of a folder's names, and its tensors under the names of the export form.

    The form is the first that explains the most names; names that it does not explain stay as they
    are. Names that end in one of `ignored` are left out, and so are the starts that wrappers put
    before every name. Raises ManuError for tensors of a dtype that is not known, and for two names
    of one weight.
    """
    tensors = {name: x for name, x in tensors.items() if not name.endswith(tuple(ignored))}
    strange = [f"{name} is {x.dtype}" for name, x in tensors.items() if x.dtype not in DTYPES]
    if strange:
        where = next(iter(tensors.values())).file.parent
        raise_faults(strange, f"{where}: known dtypes are {', '.join(DTYPES)}; convert the model:")
    tensors = _unwrapped(tensors)
    names = list(tensors)

    def explained(form: str) -> int:
        return sum(name.startswith(tuple(name_prefixes[form])) for name in names)

    form = max(name_prefixes, key=explained)
    # A longer start wins; forms whose starts contain one another differ in their longest.
    starts = sorted(name_prefixes[form], key=len, reverse=True)
    renamed: dict[str, Tensor] = {}
    doubled = []
    for name in names:
        start = next((start for start in starts if name.startswith(start)), None)
        new = name if start is None else name_prefixes[form][start] + name[len(start) :]
        if new in renamed:
            doubled.append(f"{renamed[new].stored_name} and {tensors[name].stored_name}")
        renamed[new] = tensors[name]
    if doubled:
        where = next(iter(tensors.values())).file.parent
        raise_faults(doubled, f"{where}: two tensors stand for one weight; take one of each out:")
    return form, renamed


def without_repeats(tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors without the repeats of a tied model ({repeat: other}).

    Raises ManuError where a repeat holds other numbers, whatever dtype they are stored in.
    """
    kept = dict(tensors)
    with Reader() as reader:
        for repeat, other in tied.items():
            if repeat not in kept:
                continue
            if other not in kept:
                kept[other] = kept.pop(repeat)
                continue
            if not _equal_values(kept[repeat], kept[other], reader):
                raise ManuError(
                    f"{kept[repeat].file.parent}: config.json ties {repeat} to {other}, and the "
                    "files hold different numbers for them. Set tie_word_embeddings to false."
                )
            del kept[repeat]
    return kept


def compare(
    tensors: Mapping[str, Tensor], table: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]]
) -> Comparison:
    """Return what is missing, left over and misshaped, without reading a weight.

    shapes: {path: shape} of the model's leaves.
    """
    unfilled = set(shapes) - {entry.path for entry in table}
    if unfilled:
        raise ValueError(f"leaves without an entry in the weight table: {sorted(unfilled)}")
    wanted = {
        name: _stored_shape(entry, shapes[entry.path])
        for entry in table
        for name in entry.names(shapes[entry.path])
    }
    misshaped = [
        f"{tensors[name].stored_name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    left_over = [tensors[name].stored_name for name in tensors if name not in wanted]
    return Comparison(
        tuple(name for name in wanted if name not in tensors), tuple(left_over), tuple(misshaped)
    )


def stored_dtype(tensors: Mapping[str, Tensor]) -> Any:
    """Return the one dtype that holds all tensors of a folder exactly."""
    kinds = sorted({tensor.dtype for tensor in tensors.values()})
    return DTYPES[kinds[0]] if len(kinds) == 1 else DTYPES["F32"]


def fill(
    model: Any,
    tensors: Mapping[str, Tensor],
    table: Sequence[Entry],
    *,
    dtype: Any,
    mesh: jax.sharding.Mesh | None,
) -> Any:
    """Return the abstract `model` with every leaf read from disk, placed on the mesh.

    Raises ManuError that lists all tensors with NaN or infinite numbers, or too large ones.
    """
    entries = {entry.path: entry for entry in table}
    with Reader() as reader:

        def leaf(path, empty):
            name, shape = path_name(path), empty.shape
            place = None if mesh is None else parallel.sharding(name, shape, mesh)
            own = [tensors[tensor] for tensor in entries[name].names(shape)]
            return Filling(entries[name], shape, own, np.dtype(dtype), place).read(reader)

        filled = jax.tree_util.tree_map_with_path(leaf, model)
        bad, too_large = reader.bad, reader.too_large - reader.bad
    if bad:
        raise ManuError(
            "weights with NaN or infinite numbers:\n"
            + "\n".join(f"  {name}" for name in sorted(bad))
            + "\nThe file is damaged, or the training that wrote it had diverged."
        )
    if too_large:
        raise too_large_for(dtype, too_large)
    return filled


def too_large_for(dtype: Any, names: Iterable[str]) -> ManuError:
    """Return the error about weights with numbers that a dtype does not hold."""
    return ManuError(
        f"weights with numbers that are too large for {np.dtype(dtype)}:\n"
        + "\n".join(f"  {name}" for name in sorted(names))
        + "\nGive the dtype bfloat16 or float32."
    )


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the starts of wrappers, where all names have them."""
    kept = dict(tensors)
    while kept:
        start = next((w for w in WRAPPERS if all(name.startswith(w) for name in kept)), None)
        if start is None:
            break
        logger.info("all tensors' names begin with %r, which is taken off", start)
        kept = {name[len(start) :]: tensor for name, tensor in kept.items()}
    return kept


def _tensors_of(file: Path) -> Iterator[Tensor]:
    """Yield the tensors of a safetensors file; of one in a store its header alone is read."""
    from safetensors import safe_open

    if stores.is_store(file):
        yield from _tensors_in_store(file)
        return
    with safe_open(file, "numpy") as opened:  # which checks the file
        begins = _begins(file)
        for name in opened.keys():
            piece = opened.get_slice(name)
            yield Tensor(file, name, tuple(piece.get_shape()), piece.get_dtype(), begins[name])


def _tensors_in_store(file: Any) -> Iterator[Tensor]:
    """Yield what the header of a file in a store tells; ValueError where the file is not whole."""
    whole = file.stat().st_size
    size = int.from_bytes(stores.read_range(file, 0, 8), "little")
    if not 0 < size <= whole - 8:
        raise ValueError("its header is cut short")
    for name, entry in _entries(stores.read_range(file, 8, 8 + size)).items():
        begin, end = entry["data_offsets"]
        tensor = Tensor(file, name, tuple(entry["shape"]), entry["dtype"], 8 + size + begin)
        if 8 + size + end > whole or (tensor.dtype in DTYPES and tensor.nbytes != end - begin):
            raise ValueError(f"{name} goes beyond its end, or is not of its shape's size")
        yield tensor


def _begins(file: Path) -> dict[str, int]:
    """Return {name: first byte} of the tensors in a safetensors file: after its header."""
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        entries = _entries(opened.read(size))
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in entries.items()}


def _entries(header: bytes) -> dict[str, Any]:
    """Return what the header of a safetensors file says of each tensor."""
    return {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}


def _equal_values(one: Tensor, two: Tensor, reader: Reader) -> bool:
    """Whether two tensors hold the same numbers; those of all known dtypes fit in float32."""
    if one.shape != two.shape:
        return False
    step = max(VALUES_COMPARED // max(math.prod(one.row_shape), 1), 1)
    for start in range(0, one.num_rows, step):
        stop = min(start + step, one.num_rows)
        a, b = (reader.rows(x, start, stop).astype(np.float32) for x in (one, two))
        if not np.array_equal(a, b, equal_nan=True):
            return False
    return True


def _stored_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    own = shape[1:] if entry.is_stacked else shape
    sizes = dict(zip(entry.letters, own, strict=True))
    return tuple(math.prod(sizes[letter] for letter in group) for group in entry.groups)
