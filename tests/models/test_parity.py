"""The same weights and inputs give what `LlavaForConditionalGeneration` gives in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import random_images
from llava_cases import cases
from parity import TOLERANCE, check_logits, forward, greedy

from manu_jax import leaves as leaf_names
from manu_jax.models import loaded as loading
from manu_jax.models.inputs.vision_inputs import patches_of
from manu_jax.models.nn.capture import text_weights
from manu_jax.types import BatchShape, Capture, Sample

# Of different lengths, so that the statistic sees padding.
TWO = [cases.PROMPTS[0], cases.PROMPTS[0].replace("live", "live in Oslo")]


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_equal_those_of_transformers(case, name):
    folder, reference = case(name)
    loaded = loading.load(folder)
    images = cases.image_lists()
    for side in ("left", "right"):
        inputs = cases.torch_inputs(folder, side, images=images)
        batch = loaded.batch(cases.PROMPTS, images, padding_side=side)
        check_inputs(inputs, batch)
        check_logits(reference, inputs, forward(loaded.model, batch), batch)


def test_a_text_only_batch_runs_no_tower_and_has_the_same_logits(case):
    folder, reference = case()
    loaded = loading.load(folder)
    prompts = ["USER: Where?\nASSISTANT:", "USER: Lima or Accra?\nASSISTANT:"]
    inputs = cases.torch_inputs(folder, "right", prompts)
    batch = loaded.batch(prompts)
    check_inputs(inputs, batch)
    check_logits(reference, inputs, forward(loaded.model, batch), batch)
    # Not a number of the tower is read: with NaN in all its weights the logits are the same.
    broken = jax.tree.map(lambda leaf: leaf, loaded.model)
    broken.vision = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), broken.vision)
    assert np.isfinite(forward(broken, batch).logits_BTV).all()


def test_greedy_tokens_and_each_steps_logits_equal_those_of_generate(case):
    folder, reference = case("qwen2-two-windows")
    loaded = loading.load(folder)
    images, steps = cases.image_lists(), 8  # longer than the window
    inputs = cases.torch_inputs(folder, "left", images=images)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        expected = reference.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=3,
            output_logits=True,
            return_dict_in_generate=True,
        )
    batch = loaded.batch(cases.PROMPTS, images, padding_side="left")
    tokens_BT, logits = greedy(loaded.model, batch, steps)
    assert tokens_BT.tolist() == expected.sequences[:, length:].tolist()
    for ours_BV, theirs_BV in zip(logits, expected.logits, strict=True):
        np.testing.assert_allclose(ours_BV, theirs_BV, atol=TOLERANCE)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_activations_equal_those_of_forward_hooks(case, reduction):
    folder, reference = case()
    loaded = loading.load(folder)
    images, answers = cases.image_lists(), [" Oslo.", " Lima.", " She lives"]
    batch = loaded.batch(cases.PROMPTS, images, answers)
    prompts = [p + a for p, a in zip(cases.PROMPTS, answers, strict=True)]
    inputs = cases.torch_inputs(folder, "right", prompts, images)
    check_inputs(inputs, batch)
    hooked = hook(reference, inputs)
    valid_BT = batch.attention_mask_BT
    output = forward(loaded.model, batch, capture=Capture(reduction=reduction))
    expected = np.stack(
        [[reduce(z[row][valid_BT[row]], reduction) for row in range(3)] for z in hooked["text"]]
    )
    np.testing.assert_allclose(output.activations["text"], expected, atol=TOLERANCE)
    per_row = [[0], [1, 2], []]  # the rows' images, in the order that the tower sees them
    for layer, z in enumerate(hooked["vision"][: loaded.towers["vision"][0]]):
        for row, chosen in enumerate(per_row):
            z_TF = z[chosen].reshape(-1, z.shape[-1])
            seen = output.activations["vision"][layer][row]
            want = reduce(z_TF, reduction) if chosen else np.zeros_like(seen)
            np.testing.assert_allclose(seen, want, atol=TOLERANCE)


def test_answer_and_last_are_means_over_the_answers_and_the_last_tokens(case):
    loaded = loading.load(case()[0])
    weights = jax.jit(
        lambda batch, reduction: text_weights(batch, Capture(reduction)).weights_BT,
        static_argnums=1,
    )
    for side in ("right", "left"):
        batch = loaded.batch(
            ["USER: Where?", "Lima"], answers=[" Oslo, Lima", ""], padding_side=side
        )
        answer_BT = weights(batch, "answer")
        count = (batch.loss_weights_BT[0] > 0).sum()
        np.testing.assert_allclose(answer_BT[0], (batch.loss_weights_BT[0] > 0) / count)
        assert not answer_BT[1].any()
        last_BT = weights(batch, "last")
        for row in range(2):
            (valid,) = np.nonzero(batch.attention_mask_BT[row])
            np.testing.assert_array_equal(np.nonzero(last_BT[row])[0], valid[-1:])


@pytest.mark.parametrize("pooling", ["none", "all"])
def test_the_position_statistic_equals_that_of_hooked_matrices(case, pooling):
    folder, reference = case()
    loaded = loading.load(folder)
    images = [[image] for image in random_images(2)]
    inputs = cases.torch_inputs(folder, "right", TWO, images)
    samples = [Sample(((prompt, False),), tuple(i)) for prompt, i in zip(TWO, images, strict=True)]
    encoded = [loaded.encode(sample) for sample in samples]
    check_inputs(inputs, loaded.collate(encoded))
    capture = Capture(reduction="position", layer_pooling=pooling, threshold=0.1, clamp=0.4)
    names = ("text.gate_proj", "text.up_proj", "text.down_proj", "vision.fc1", "vision.fc2")
    # Padding examples do not count, padding tokens do.
    batch = loaded.collate(encoded, BatchShape(batch_size=4))
    found = forward(loaded.model, batch, capture=capture).activations
    assert sorted(found) == sorted(names)
    hooked = hook_matrices(reference, inputs, loaded.towers)
    for name in names:
        layers = np.clip(np.stack(hooked[name]), -0.4, 0.4)  # [L, B, T, F]
        if pooling == "all":
            layers = layers.reshape(1, -1, *layers.shape[2:])
        np.testing.assert_allclose(
            found[name], [position_statistic(z, 0.1) for z in layers], atol=TOLERANCE
        )


def test_every_weight_changes_the_logits(case):
    folder, _ = case("biases-llama3-rope")
    loaded = loading.load(folder)
    batch = loaded.batch(cases.PROMPTS, cases.image_lists())
    mask_BT = batch.attention_mask_BT
    before = forward(loaded.model, batch).logits_BTV[mask_BT]
    leaves, structure = jax.tree.flatten(loaded.model)
    unchanged = set()
    for number, name in enumerate(leaf_names.shapes(loaded.model)):
        leaf = np.asarray(leaves[number])
        for layer in range(leaf.shape[0] if "layers" in name else 1):
            noise = np.random.default_rng(0).normal(0, 0.3, leaf.shape).astype(leaf.dtype)
            if "layers" in name:
                noise[np.arange(len(leaf)) != layer] = 0
            changed = structure.unflatten(leaves[:number] + [leaf + noise] + leaves[number + 1 :])
            after = forward(changed, batch).logits_BTV[mask_BT]
            if np.abs(after - before).max() < TOLERANCE:
                unchanged.add(name)
    # A bias on a key adds the same to all of a query's scores, where no rotation tells keys apart.
    never = {"vision.layers.attention.k_bias_LKH"}
    never |= {
        name for name in leaf_names.shapes(loaded.model) if name.startswith("vision.unused_layers.")
    }
    never |= {"vision.post_norm_D", "vision.post_norm_bias_D"}
    assert unchanged == never


def check_inputs(inputs, batch):
    """Assert that our ids, mask and pixels are those of the processor."""
    np.testing.assert_array_equal(inputs["attention_mask"].numpy(), batch.attention_mask_BT)
    mask_BT = batch.attention_mask_BT
    np.testing.assert_array_equal(inputs["input_ids"].numpy()[mask_BT], batch.token_ids_BT[mask_BT])
    if batch.images is not None:
        patches = [patches_of(pixels, cases.PATCH) for pixels in inputs["pixel_values"].numpy()]
        np.testing.assert_array_equal(patches, batch.images.patches_BIPC[batch.images.mask_BI])


def reduce(z_TF, reduction):
    if reduction == "max":
        return z_TF[np.abs(z_TF).argmax(axis=0), np.arange(z_TF.shape[1])]
    return z_TF.mean(axis=0)


def hook(reference, inputs):
    """Return {tower: one array [rows, tokens, F] per layer} of what enters down_proj and fc2."""
    found = {"text": [], "vision": []}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, tower=tower: found[tower].append(args[0].numpy())
        )
        for name, module in reference.named_modules()
        for end, tower in ((".down_proj", "text"), (".fc2", "vision"))
        if name.endswith(end)
    ]
    with torch.no_grad():
        reference(**inputs)
    for handle in handles:
        handle.remove()
    return found


def hook_matrices(reference, inputs, towers):
    """Return {"tower.matrix": arrays [rows, tokens, outputs] of the layers that count}."""
    found: dict[str, list] = {}
    handles = []
    for name, module in reference.named_modules():
        tower = "vision" if "vision_tower" in name else "text"
        if ".mlp." not in name or not isinstance(module, torch.nn.Linear):
            continue
        key = f"{tower}.{name.rsplit('.', 1)[1]}"

        def keep(_, __, output, key=key):
            found.setdefault(key, []).append(output.numpy())

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        reference(**inputs)
    for handle in handles:
        handle.remove()
    return {key: arrays[: towers[key.split(".")[0]][0]] for key, arrays in found.items()}


def position_statistic(z_BTF, threshold):
    size = np.abs(z_BTF)
    columns = (
        size.mean(axis=0),
        (size > threshold).mean(axis=0),
        z_BTF.std(axis=0, ddof=1),
        np.sqrt(np.square(z_BTF).mean(axis=0)),
    )
    return np.stack([column_TF.mean(axis=0) for column_TF in columns])
