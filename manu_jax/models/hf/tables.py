"""Which tensor of a Hugging Face file fills which leaf, and where the neurons of a tower lie.

An Entry's axes are the letters of the tensor on disk; letters in parentheses share one dimension.
The leaf's own letters end its path, so `Entry("…q_LDNH", "…q_proj.weight", "(NH)D")` defines
how that weight is read, sliced and written.
"""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """How the tensors of a family are named in files.

    prefixes: {who writes these names: {prefix of a name: prefix of the export name}}. Export names
    are those of the weight table, which `save_pretrained` writes. buffers: endings of the names of
    tensors that are computed; those in a file are ignored. head, embedding: of the decoder; the
    files of a tied model may also hold the head, which then repeats the embedding.
    """

    prefixes: Mapping[str, Mapping[str, str]]
    buffers: tuple[str, ...]
    head: str
    embedding: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of the model and the tensor, or the tensors of its layers, that fill it.

    name: the tensor's name in the family's export form; `{layer}` is the layer's number, which is
    `first_layer` plus the index on the leaf's L axis. A stack of one may have no number. layers:
    what `{layer}` is instead, in order, where a stack's layers are not numbered on.
    """

    path: str
    name: str
    axes: str
    first_layer: int = 0
    layers: tuple[str, ...] = ()

    @property
    def letters(self) -> str:
        """The leaf's letters without L."""
        return self.path.rsplit("_", 1)[1].removeprefix("L")

    @property
    def is_stacked(self) -> bool:
        return self.path.rsplit("_", 1)[1].startswith("L")

    @property
    def groups(self) -> list[str]:
        """The letters of each dimension on disk: "(NH)D" → ["NH", "D"]."""
        return [group.strip("()") for group in re.findall(r"\([A-Z]+\)|[A-Z]", self.axes)]

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """Return the tensor's names, layer by layer, for a leaf of that shape."""
        if not self.is_stacked:
            return [self.name]
        layers = self.layers or range(self.first_layer, self.first_layer + shape[0])
        return [self.name.format(layer=layer) for layer in layers]
