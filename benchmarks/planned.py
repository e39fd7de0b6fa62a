"""The steps of a planned run (manu_jax/planning) with random arrays in place of shapes.

The model is built from a released `config.json` alone, its weights are made on the device, and what
runs are the very functions that the run jits, with the arguments that it gives them.
"""

import dataclasses
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.interpreters import partial_eval

from manu_jax.config.base import Remat
from manu_jax.config.run import validate_config
from manu_jax.importance import learned
from manu_jax.planning import asking, scoring, strangers
from manu_jax.planning.chips import GPUS, Chip, target_of
from manu_jax.planning.cost import flops
from manu_jax.planning.step import WEIGHTS, Step
from manu_jax.planning.world import Assumed, World, world_of
from manu_jax.types import Batch

CONFIG = Path(__file__).parent.parent / "tests" / "data" / "llava-1.5-7b.json"
# What makes a tiny model of the released one, to try a script.
SMALL = {
    "image_token_index": 500,
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 512,
    },
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 56,
    },
}
REFERENCE = "reference"  # the form of attention that makes every score
FIRST = 4  # the position of an image's first token
# Part → the name of its step in a plan. A bare forward pass takes the batch of the statistics.
ITEMS = {
    "forward": "paper: statistics, image form",
    "statistics": "paper: statistics, image form",
    "attribution": "gradient: attribution, image form",
    "learned gates": "learned: learned gates",
    "suppress": "suppress: gradient",
    "erase": "erase: gradient",
}


_name = "manu_jax.models.nn.attention"
ATTENTION: Any = importlib.import_module(_name) if importlib.util.find_spec(_name) else None


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of a sample with its image, of one of text alone, of their answers, and written."""

    sample: int = 768
    text: int = 128
    answer: int = 16
    new: int = 50


def sizes(*, is_small: bool) -> tuple[dict[str, Any], Lengths]:
    """Return the values of LLaVA-1.5-7B's `config.json`, and the lengths of samples; or tiny ones.

    Those of a tiny model are enough to try a script.
    """
    values = json.loads(CONFIG.read_text())
    if not is_small:
        return values, Lengths()
    return resized(values, SMALL), Lengths(sample=48, text=32, answer=8, new=4)


def resized(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a `config.json` with others in place of some."""
    parts = {name: part for name, part in changes.items() if isinstance(part, dict)}
    return {**values, **changes, **{name: {**values[name], **parts[name]} for name in parts}}


def attention_forms() -> tuple[str, ...]:
    """Return the forms of attention that a run may take, the usual one first."""
    return ("auto", REFERENCE) if ATTENTION is not None else (REFERENCE,)


def use_attention(form: str) -> None:
    """Let programs that are traced from now on have this form of attention."""
    if ATTENTION is not None:
        ATTENTION.use(form)


def plan_world(
    hf_config: dict[str, Any], lengths: Lengths, target: str = "devices=1", **values: Any
) -> World:
    """Return the world of a run of a model that has a `config.json` alone.

    target: as of `--plan`. values: of the run's config, beside the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(hf_config))
        model = {"path": folder, **values.pop("model", {})}
        config = validate_config({"model": model, **values}, "benchmark")
        assumed = Assumed(text=lengths.text, tokens=lengths.sample, answers=lengths.answer)
        return world_of(config, target_of(target), assumed)


def random_model(world: World) -> Any:
    """Return a model of random weights, made where they are to lie."""
    build, config = world.loaded.family.build, world.loaded.config

    def made(key: jax.Array) -> Any:
        return jax.tree.map(
            lambda leaf, shape: leaf.astype(shape.dtype), build(key, config), world.model
        )

    split = jax.tree.map(lambda shape: shape.sharding, world.model)
    return jax.jit(made, out_shardings=split)(jax.random.key(0))


def step_of(part: str, world: World, size: int, remat: Remat | None) -> Step:
    """Return a step on `size` samples.

    Answers have their full length, and their batches hold patches, as those of a first question do.
    """
    if part == "answers":
        return _answers(world, size)
    kinds = (scoring.scoring_items, strangers.stranger_items)
    item = next(item for items in kinds for item in items(world) if item.name == ITEMS[part])
    step = item.make(world, size, remat)
    if part == "forward":
        return dataclasses.replace(step, function=forward, args=step.args[1:], kwargs={})
    return step


def _answers(world: World, size: int) -> Step:
    """Return the step that writes whole batches of answers, none of which ends before the last."""
    asked = asking.Asked(world.data.prompts["image"], 1, asking.beside_a_method)
    step = asking._answers(asked, world, size, None)
    model, batch, *beside = step.args
    how = dataclasses.replace(step.kwargs["how"], eos_ids=())
    args = (model, _with_patches(batch, world), *beside)
    return dataclasses.replace(step, args=args, kwargs={"how": how})


@jax.jit
def forward(model: Any, batch: Batch) -> jax.Array:
    """Return the logits of all tokens. [B, T, V]."""
    return model(batch).logits_BTV


def useful_flops(step: Step) -> float:
    """Return the FLOPs of the products that a step's results depend on, as they are traced.

    A step that is traced with remat "none" computes nothing twice.
    """
    jaxpr = step.function.trace(*step.args, **step.kwargs).jaxpr.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return flops(used, trips=step.trips).total


def filled(step: Step, world: World, model: Any, *, batches: dict[str, Batch]) -> tuple[Any, Any]:
    """Return a step's arguments as arrays: the weights, random batches, gates of 1, else zeros.

    batches: those made so far, which are taken again.
    """

    parts = jax.tree.leaves(step.parts.get(WEIGHTS), is_leaf=_is_model)
    weights = [part for part in parts if _is_model(part)]

    def is_weights(node: Any) -> bool:
        return any(node is one for one in weights)

    def arrays(tree: Any, number: float = 0) -> Any:
        def one(leaf: Any) -> Any:
            if is_weights(leaf):
                return jax.tree.map(_as, model, leaf)
            if isinstance(leaf, Batch):
                return _kept(leaf, world, batches)
            if isinstance(leaf, jax.ShapeDtypeStruct):
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    return jax.device_put(jax.random.key(0), leaf.sharding)
                return jnp.full(leaf.shape, number, leaf.dtype, device=leaf.sharding)
            return leaf

        return jax.tree.map(
            one, tree, is_leaf=lambda node: is_weights(node) or isinstance(node, Batch)
        )

    args = arrays(step.args)
    if step.function is learned._step:
        args = (*args[:3], {form: _marked(batch) for form, batch in args[3].items()}, *args[4:])
    kwargs = {name: arrays(value, name == "gates") for name, value in step.kwargs.items()}
    return args, kwargs


def chip_of(device: Any) -> Chip | None:
    """Return the rates of a device; None where they are not known."""
    kind = device.device_kind.lower()
    return next((chip for name, chip in GPUS.items() if name in kind), None)


def _as(values: jax.Array, shape: jax.ShapeDtypeStruct) -> jax.Array:
    return values if values.dtype == shape.dtype else values.astype(shape.dtype)


def _is_model(node: Any) -> bool:
    return isinstance(node, nnx.Module)


def _with_patches(batch: Batch, world: World) -> Batch:
    assert batch.images is not None
    config = world.loaded.config
    shape = (*batch.images.mask_BI.shape, config.num_patches, config.patch_values)
    patches = world.place.rows(jax.ShapeDtypeStruct(shape, jnp.float32))
    images = dataclasses.replace(batch.images, features_BIPE=None, patches_BIPC=patches)
    return dataclasses.replace(batch, images=images)


def _kept(batch: Batch, world: World, batches: dict[str, Batch]) -> Batch:
    key = str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch))
    if key not in batches:
        batches[key] = _random_batch(batch, world)
    return batches[key]


def _random_batch(shapes: Batch, world: World) -> Batch:
    """Return a batch of these shapes: one image each, random text, its last tokens the answer."""
    config, rng = world.loaded.config, np.random.default_rng(0)
    B, T = shapes.token_ids_BT.shape
    token_ids_BT = rng.integers(3, config.image_token, (B, T), dtype=np.int32)
    num_answers = 0 if shapes.answer_index_BA is None else shapes.answer_index_BA.shape[1]
    loss_weights_BT = np.zeros((B, T), np.float32)
    loss_weights_BT[:, T - num_answers :] = num_answers > 0
    answers_A = np.arange(T - 1 - num_answers, T - 1, dtype=np.int32)
    images = shapes.images
    if images is not None:
        place = slice(FIRST, FIRST + config.tokens_per_image)
        token_ids_BT[:, place] = config.image_token
        index_BT = np.full((B, T), -1, np.int32)
        index_BT[:, place] = np.arange(config.tokens_per_image)
        name = "features_BIPE" if images.patches_BIPC is None else "patches_BIPC"
        given = getattr(images, name)
        images = dataclasses.replace(
            images,
            mask_BI=np.ones(images.mask_BI.shape, bool),
            feature_index_BT=index_BT,
            **{name: _normal(rng, given)},
        )
    entering = shapes.entering_BTD
    values = Batch(
        token_ids_BT=token_ids_BT,
        attention_mask_BT=np.ones((B, T), bool),
        positions_BT=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        loss_weights_BT=loss_weights_BT,
        example_weights_B=np.ones(B, np.float32),
        images=images,
        answer_index_BA=np.tile(answers_A, (B, 1)) if num_answers else None,
        entering_BTD=None if entering is None else _normal(rng, entering),
    )
    return jax.device_put(values, jax.tree.map(lambda shape: shape.sharding, shapes))


def _normal(rng: np.random.Generator, shape: Any) -> np.ndarray:
    return rng.standard_normal(shape.shape, np.float32).astype(shape.dtype)


def _marked(batch: Batch) -> Batch:
    """Return a batch of which a quarter is to be forgotten, and the rest kept."""
    assert isinstance(batch.example_weights_B, jax.Array)
    B = len(batch.example_weights_B)
    marks_B = np.where(np.arange(B) < max(B // 4, 1), learned.FORGET, learned.KEEP)
    marks_B = jax.device_put(marks_B.astype(np.float32), batch.example_weights_B.sharding)
    return dataclasses.replace(batch, example_weights_B=marks_B)
