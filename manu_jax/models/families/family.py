"""What the rest of the program knows of a family of models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.config import ModelSection
from manu_jax.leaves import num_parameters
from manu_jax.models.families import tiny
from manu_jax.models.hf.tables import Entry, TensorNames
from manu_jax.models.inputs import processing
from manu_jax.models.nn.mlp import TowerMlp, matrix_rows, neuron_leaves, row_leaves
from manu_jax.models.nn.multimodal import text_and_vision_mlps
from manu_jax.types import Template, VisionInput


@dataclasses.dataclass(frozen=True)
class Family:
    """What is particular about one architecture.

    - config_from_hf: the config, given the values of a `config.json` and its path for errors.
    - build: a model with random weights, given a key and the config.
    - names: of the tensors in files; the config's `text.is_tied` says whether the head is tied.
    - replacements: what replaces each placeholder in a text, given the text, its images, the
      processor and the config.
    - vision_inputs: what the vision tower gets for an image, given the image, the processor and the
      config. vision_inputs_of_many: the same for one of several images of a text, if it differs.
    - placeholder: the processor's attribute that holds the placeholder.
    - feature_rows: the rows of each image's features that its tokens take, and their weights, given
      the images and the config; None: all rows, in order.
    - rope_positions: the three positions of each token, given which tokens are an image's, the
      vision inputs and the config; None: a token has one position.
    - template: the prompt strings, where a folder has no chat template.
    - template_of: the prompt strings, given the tokenizer, if the models of the family differ in
      them; it may return None for `template`.
    - prompt_sees_ahead: the tokens before an answer attend to each other in both directions.
    - takes_images: whether there is a vision tower; without one there is no placeholder.
    - tiny_config: the `config.json` of a model that the run trains from scratch, given its sizes
      and its processor's tokenizer. tiny_processor: its processor, given its sizes and a tokenizer.
    - check_sizes: what is wrong with such sizes, a sentence each.
    """

    name: str
    model_type: str
    config_from_hf: Callable[[Mapping[str, Any], str], Any]
    build: Callable[[jax.Array, Any], Any]
    weight_table: Callable[[Any], list[Entry]]
    names: TensorNames
    replacements: Callable[[str, Sequence[Any], Any, Any], Sequence[processing.Replacement]]
    vision_inputs: Callable[[Any, Any, Any], tuple[VisionInput, ...]]
    tiny_config: Callable[[ModelSection, Any], dict[str, Any]]
    tiny_processor: Callable[[ModelSection, Any], Any]
    template: Template
    check_sizes: Callable[[ModelSection], list[str]] = tiny.any_sizes
    mlps: Callable[[Any], dict[str, TowerMlp]] = text_and_vision_mlps
    placeholder: str = "image_token"
    load_processor: Callable[[Path], Any] = processing.whole_processor
    feature_rows: Callable[[Sequence[Any], Any], Sequence[processing.FeatureRows]] | None = None
    vision_inputs_of_many: Callable[[Any, Any, Any], tuple[VisionInput, ...]] | None = None
    rope_positions: Callable[[np.ndarray, Sequence[VisionInput], Any], np.ndarray] | None = None
    template_of: Callable[[Any], Template | None] | None = None
    prompt_sees_ahead: bool = False
    takes_images: bool = True

    def abstract(self, config: Any, dtype: Any = jnp.float32) -> Any:
        """Return the model with shapes in place of arrays; nothing is computed or allocated."""
        model = _shapes(self.build, config)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model)

    def strings_for(self, tokenizer: Any) -> Template:
        """Return the prompt strings that fit the tokenizer.

        Where it lacks the token that ends the family's answers, its own end takes the place.
        """
        found = (self.template_of(tokenizer) if self.template_of else None) or self.template
        end = found.end
        if tokenizer.convert_tokens_to_ids(end) in (None, tokenizer.unk_token_id):
            end = tokenizer.eos_token or end
        return dataclasses.replace(found, end=end, source=f"the strings of {self.name}")

    def tied(self, config: Any) -> dict[str, str]:
        """Return {the head: the embedding that it repeats}; {} where the model is not tied."""
        return {self.names.head: self.names.embedding} if config.text.is_tied else {}

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
        """Return {"tower.matrix": (layers, output rows)}, the sizes that "position" measures."""
        return {
            f"{name}.{matrix}": rows
            for name, mlp in self.mlps(config).items()
            for matrix, rows in matrix_rows(mlp).items()
        }

    def sizes(self, config: Any, model: Any) -> str:
        """Return one line of sizes: parameters, towers, neurons."""
        parts = [f"{num_parameters(model):,} parameters in {jax.tree.leaves(model)[0].dtype}"]
        for tower, (layers, neurons) in self.towers(config).items():
            parts.append(f"{tower}: {layers} × {neurons:,} = {layers * neurons:,} neurons")
        return "; ".join(parts)


@functools.lru_cache(maxsize=64)
def _shapes(build: Callable[[jax.Array, Any], Any], config: Any) -> Any:
    """Return the shapes of a model; nobody changes it, so that those of one config are one."""
    return jax.eval_shape(lambda: build(jax.random.key(0), config))
