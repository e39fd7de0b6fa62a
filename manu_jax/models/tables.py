"""Which tensor of a Hugging Face file fills which leaf, and where the neurons of a tower lie.

An Entry's axes are the letters of the tensor on disk; letters in parentheses share one dimension.
The leaf's own letters end its path, so `Entry("…q_LDNH", "…q_proj.weight", "(NH)D")` says all there
is to say about reading, slicing and writing that weight.
"""

import dataclasses
import re
from typing import Any

from manu_jax.models.decoder_config import DecoderConfig
from manu_jax.models.vit import VitConfig


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of the model and the tensor, or the tensors of its layers, that fill it.

    name: the tensor's name in the family's export form; `{layer}` is the layer's number, which is
    `first_layer` plus the index on the leaf's L axis. A stack of one may have no number.
    """

    path: str
    name: str
    axes: str
    first_layer: int = 0

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
        return [self.name.format(layer=self.first_layer + index) for index in range(shape[0])]


@dataclasses.dataclass(frozen=True)
class TowerMlp:
    """A tower's MLPs: path of the module, sizes, and which weights it has. width: of the output."""

    path: str
    num_layers: int
    num_neurons: int
    width: int
    gated: bool
    bias: bool


def neuron_leaves(mlp: TowerMlp) -> dict[str, tuple[str, int]]:
    """Return {name: (path, axis of F)} of the weights that belong to a neuron."""
    if mlp.gated:
        leaves = {"gate": ("gate_LDF", 2), "up": ("up_LDF", 2), "down": ("down_LFD", 1)}
        biases = {"gate_bias": ("gate_bias_LF", 1), "up_bias": ("up_bias_LF", 1)}
    else:
        leaves = {"fc1": ("up_LDF", 2), "fc2": ("down_LFD", 1)}
        biases = {"fc1_bias": ("up_bias_LF", 1)}
    chosen = leaves | (biases if mlp.bias else {})
    return {name: (f"{mlp.path}.{leaf}", axis) for name, (leaf, axis) in chosen.items()}


def row_leaves(mlp: TowerMlp) -> dict[str, dict[str, tuple[str, int]]]:
    """Return {matrix: {"weight" or "bias": (path, axis of the row)}}, under the names of HF."""
    matrices = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    rows = {}
    for matrix, name in (matrices if mlp.gated else {"fc1": "up", "fc2": "down"}).items():
        letters, bias = ("LFD", "LD") if name == "down" else ("LDF", "LF")
        rows[matrix] = {"weight": (f"{mlp.path}.{name}_{letters}", 2)}
        if mlp.bias:
            rows[matrix]["bias"] = (f"{mlp.path}.{name}_bias_{bias}", 1)
    return rows


def matrix_rows(mlp: TowerMlp) -> dict[str, tuple[int, int]]:
    """Return {matrix: (layers, output rows)}, under the names of HF."""
    down = "down_proj" if mlp.gated else "fc2"
    return {
        name: (mlp.num_layers, mlp.width if name == down else mlp.num_neurons)
        for name in row_leaves(mlp)
    }


def decoder_mlp(config: DecoderConfig, path: str) -> TowerMlp:
    """Return how the MLPs of a decoder are built."""
    sizes = (config.num_layers, config.num_neurons, config.width)
    return TowerMlp(path + ".layers.mlp", *sizes, gated=True, bias=config.mlp_bias)


def vit_mlp(config: VitConfig, path: str) -> TowerMlp:
    """Return how the MLPs of a tower's layers that run are built."""
    sizes = (config.num_run, config.num_neurons, config.width)
    return TowerMlp(path + ".layers.mlp", *sizes, gated=False, bias=True)


def text_and_vision_mlps(config: Any) -> dict[str, TowerMlp]:
    """Return the towers of a model with a decoder and a CLIP or SigLIP, if any layer of it runs."""
    text, vision = decoder_mlp(config.text, "text"), vit_mlp(config.vision, "vision")
    return {"text": text, "vision": vision} if config.vision.num_run else {"text": text}


def gated_rows(num_neurons: int, width: int) -> dict[str, int]:
    """Return the output rows of a gated MLP's matrices, under the names of HF."""
    return {"gate_proj": num_neurons, "up_proj": num_neurons, "down_proj": width}


def mlp_table(mlp: TowerMlp, name: str) -> list[Entry]:
    """Return the table of a tower's gated MLPs, the beginning of whose names is `name`."""
    matrices = {"gate": ("gate_proj", "FD"), "up": ("up_proj", "FD"), "down": ("down_proj", "DF")}
    table = []
    for matrix, (theirs, axes) in matrices.items():
        letters, bias = ("LFD", "LD") if matrix == "down" else ("LDF", "LF")
        table.append(Entry(f"{mlp.path}.{matrix}_{letters}", f"{name}{theirs}.weight", axes))
        if mlp.bias:
            path = f"{mlp.path}.{matrix}_bias_{bias}"
            table.append(Entry(path, f"{name}{theirs}.bias", bias[1:]))
    return table


def decoder_table(config: DecoderConfig, path: str, root: str, head: str) -> list[Entry]:
    """Return the table of a Llama decoder, whose names begin with `root`; `head`: of its head."""
    layer = root + "layers.{layer}."
    attention, layers = layer + "self_attn.", path + ".layers."
    table = [
        Entry(path + ".embedding_VD", root + "embed_tokens.weight", "VD"),
        Entry(path + ".norm_D", root + "norm.weight", "D"),
        Entry(layers + "attention_norm_LD", layer + "input_layernorm.weight", "D"),
        Entry(layers + "attention.q_LDNH", attention + "q_proj.weight", "(NH)D"),
        Entry(layers + "attention.k_LDKH", attention + "k_proj.weight", "(KH)D"),
        Entry(layers + "attention.v_LDKH", attention + "v_proj.weight", "(KH)D"),
        Entry(layers + "attention.o_LNHD", attention + "o_proj.weight", "D(NH)"),
        *mlp_table(decoder_mlp(config, path), layer + "mlp."),
    ]
    before_mlp = "post_attention_layernorm.weight"
    if config.has_post_norms:
        before_mlp = "pre_feedforward_layernorm.weight"
        after = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
        table += [
            Entry(f"{layers}{name}_post_norm_LD", f"{layer}{theirs}.weight", "D")
            for name, theirs in after.items()
        ]
    table.append(Entry(layers + "mlp_norm_LD", layer + before_mlp, "D"))
    if config.has_head_norms:
        table += [
            Entry(layers + "query_norm_LH", attention + "q_norm.weight", "H"),
            Entry(layers + "key_norm_LH", attention + "k_norm.weight", "H"),
        ]
    if not config.is_tied:
        table.append(Entry(path + ".head_DV", head, "VD"))
    if config.qkv_bias:
        table += [
            Entry(layers + "attention.q_bias_LNH", attention + "q_proj.bias", "(NH)"),
            Entry(layers + "attention.k_bias_LKH", attention + "k_proj.bias", "(KH)"),
            Entry(layers + "attention.v_bias_LKH", attention + "v_proj.bias", "(KH)"),
        ]
    if config.output_bias:
        table.append(Entry(layers + "attention.o_bias_LD", attention + "o_proj.bias", "D"))
    return table


def vit_table(config: VitConfig, path: str, root: str) -> list[Entry]:
    """Return the table of a vision tower, of the layers that run and of those that do not."""
    embeddings, layer = root + "embeddings.", root + "encoder.layers.{layer}."
    attention, mlp = layer + "self_attn.", layer + "mlp."
    table = [
        Entry(path + ".patch_YXCD", embeddings + "patch_embedding.weight", "DCYX"),
        Entry(path + ".position_PD", embeddings + "position_embedding.weight", "PD"),
        Entry(path + ".post_norm_D", root + "post_layernorm.weight", "D"),
        Entry(path + ".post_norm_bias_D", root + "post_layernorm.bias", "D"),
    ]
    if config.is_clip:
        table += [
            Entry(path + ".class_D", embeddings + "class_embedding", "D"),
            Entry(path + ".pre_norm_D", root + "pre_layrnorm.weight", "D"),
            Entry(path + ".pre_norm_bias_D", root + "pre_layrnorm.bias", "D"),
        ]
    else:
        table.append(Entry(path + ".patch_bias_D", embeddings + "patch_embedding.bias", "D"))
    stacks = []
    if config.num_run:
        stacks.append((path + ".layers.", 0))
    if config.num_layers > config.num_run:
        stacks.append((path + ".unrun.", config.num_run))
    for layers, first in stacks:
        table += [
            Entry(layers + "attention_norm_LD", layer + "layer_norm1.weight", "D", first),
            Entry(layers + "attention_norm_bias_LD", layer + "layer_norm1.bias", "D", first),
            Entry(layers + "mlp_norm_LD", layer + "layer_norm2.weight", "D", first),
            Entry(layers + "mlp_norm_bias_LD", layer + "layer_norm2.bias", "D", first),
            Entry(layers + "attention.q_LDNH", attention + "q_proj.weight", "(NH)D", first),
            Entry(layers + "attention.k_LDKH", attention + "k_proj.weight", "(KH)D", first),
            Entry(layers + "attention.v_LDKH", attention + "v_proj.weight", "(KH)D", first),
            Entry(layers + "attention.o_LNHD", attention + "out_proj.weight", "D(NH)", first),
            Entry(layers + "attention.q_bias_LNH", attention + "q_proj.bias", "(NH)", first),
            Entry(layers + "attention.k_bias_LKH", attention + "k_proj.bias", "(KH)", first),
            Entry(layers + "attention.v_bias_LKH", attention + "v_proj.bias", "(KH)", first),
            Entry(layers + "attention.o_bias_LD", attention + "out_proj.bias", "D", first),
            Entry(layers + "mlp.up_LDF", mlp + "fc1.weight", "FD", first),
            Entry(layers + "mlp.up_bias_LF", mlp + "fc1.bias", "F", first),
            Entry(layers + "mlp.down_LFD", mlp + "fc2.weight", "DF", first),
            Entry(layers + "mlp.down_bias_LD", mlp + "fc2.bias", "D", first),
        ]
    return table
