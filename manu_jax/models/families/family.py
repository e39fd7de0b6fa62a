"""What the rest of the program knows of a family of models."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.models.hf.tables import Entry
from manu_jax.models.inputs import processing
from manu_jax.models.nn.mlp import TowerMlp, matrix_rows, neuron_leaves, row_leaves
from manu_jax.models.nn.multimodal import text_and_vision_mlps
from manu_jax.types import Template, VisionInput


@dataclasses.dataclass(frozen=True)
class Family:
    """What is particular about one architecture.

    name_prefixes: {form: {prefix of names: the prefix that replaces it in the export form, "A"}}.
    tied: {name that files may hold besides: the tensor that it repeats}. replacements: what
    replaces the placeholders of images, given the text, the images, the processor and the config.
    vision_inputs: what the tower reads of an image, given the image, the processor and the config.
    vision_inputs_of_many: the same of an image that is not the only one of its text, where that
    differs. placeholder: the processor's attribute that holds the placeholder. feature_rows: the
    rows of each image's features that its tokens take, given the images and the config; None: all,
    in order. rope_positions: the three positions of each token, given which are image tokens, the
    vision inputs and the config; None: a token has one. template_of: the prompt strings by the
    tokenizer, where they differ within the family; it may return None for the usual ones.
    prompt_sees_ahead: the tokens before an answer attend to each other in both directions.
    """

    name: str
    model_type: str
    config_from_hf: Callable[[Mapping[str, Any], str], Any]
    build: Callable[[jax.Array, Any], Any]
    weight_table: Callable[[Any], list[Entry]]
    name_prefixes: Mapping[str, Mapping[str, str]]
    buffers: tuple[str, ...]
    tied: Callable[[Any], dict[str, str]]
    replacements: Callable[[str, Sequence[Any], Any, Any], Sequence[processing.Replacement]]
    vision_inputs: Callable[[Any, Any, Any], tuple[VisionInput, ...]]
    new_config: Callable[..., dict[str, Any]]
    new_processor: Callable[..., Any]
    template: Template
    mlps: Callable[[Any], dict[str, TowerMlp]] = text_and_vision_mlps
    placeholder: str = "image_token"
    load_processor: Callable[[Path], Any] = processing.whole_processor
    feature_rows: Callable[[Sequence[Any], Any], Sequence[processing.FeatureRows]] | None = None
    vision_inputs_of_many: Callable[[Any, Any, Any], tuple[VisionInput, ...]] | None = None
    rope_positions: Callable[[np.ndarray, Sequence[VisionInput], Any], np.ndarray] | None = None
    template_of: Callable[[Any], Template | None] | None = None
    prompt_sees_ahead: bool = False

    def abstract(self, config: Any, dtype: Any = jnp.float32) -> Any:
        """Return the model of shapes; nothing is computed or allocated."""
        model = jax.eval_shape(lambda: self.build(jax.random.key(0), config))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model)

    def towers(self, config: Any) -> dict[str, tuple[int, int]]:
        """Return {tower: (layers that run, neurons a layer)}."""
        return {name: (m.num_layers, m.num_neurons) for name, m in self.mlps(config).items()}

    def neuron_leaves(self, config: Any) -> dict[str, dict[str, tuple[str, int]]]:
        """Return {tower: {name: (path of a leaf, its axis F)}}: the weights of a neuron."""
        return {name: neuron_leaves(mlp) for name, mlp in self.mlps(config).items()}

    def row_leaves(self, config: Any) -> dict[str, dict[str, tuple[str, int]]]:
        """Return {"tower.matrix": {"weight" or "bias": (path, axis of the output row)}}."""
        return {
            f"{name}.{matrix}": leaves
            for name, mlp in self.mlps(config).items()
            for matrix, leaves in row_leaves(mlp).items()
        }

    def matrix_rows(self, config: Any) -> dict[str, tuple[int, int]]:
        """Return {"tower.matrix": (layers, output rows)}: the sizes of what "position" measures."""
        return {
            f"{name}.{matrix}": rows
            for name, mlp in self.mlps(config).items()
            for matrix, rows in matrix_rows(mlp).items()
        }
