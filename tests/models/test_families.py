"""What holds for every family beside LLaVA-1.5, whose own tests go further: as in `transformers`.

A family is its `Cases`: how its tiny models are written, and where PyTorch keeps what ours
measures. Tolerances are the issue's for logits (1e-4, in float32); differences are near 1e-5.
"""

import dataclasses
import functools
import re

import check
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
import torch
from gemma3_cases import cases as gemma3
from idefics2_cases import cases as idefics2
from idefics3_cases import cases as idefics3
from internvl_cases import cases as internvl
from llama_cases import cases as llama
from llava_next_cases import cases as llava_next
from llava_onevision_cases import cases as llava_onevision
from mllama_cases import cases as mllama
from paligemma_cases import cases as paligemma
from parity import TOLERANCE, check_logits, forward, greedy
from qwen3_vl_cases import cases as qwen3_vl
from qwen_cases import cases as qwen
from safetensors.numpy import load_file

from manu_jax import leaves as leaf_names
from manu_jax import parallel
from manu_jax.data import batches
from manu_jax.edits import masks
from manu_jax.evaluation import generate, refilling
from manu_jax.evaluation.generate import greedy_tokens
from manu_jax.models import loaded as loading
from manu_jax.types import Capture, Sample

FAMILIES = {"idefics2": idefics2, "qwen-vl": qwen, "idefics3": idefics3, "paligemma": paligemma}
FAMILIES |= {"gemma3": gemma3, "llava-next": llava_next, "llava-onevision": llava_onevision}
FAMILIES |= {"llama": llama, "qwen3-vl": qwen3_vl, "internvl": internvl, "mllama": mllama}
CASES = [(name, case) for name, cases in FAMILIES.items() for case in cases.CASES]
FIRST = [("idefics2", "whole-images"), ("qwen-vl", "2.5"), ("qwen-vl", "2")]
FIRST += [("idefics3", "idefics3-split"), ("paligemma", "gemma"), ("paligemma", "gemma2")]
FIRST += [("gemma3", "one-key-head"), ("llava-next", "vicuna"), ("llava-onevision", "interpolated")]
FIRST += [("llama", "grouped-tied"), ("qwen3-vl", "three-layers")]
FIRST += [("internvl", "small-tower"), ("mllama", "four-tiles")]

# The logits of every family are compared always, with what else is quick; the rest of these two
# alone, and of all in `pytest -m slow` (and so in CI).
ALWAYS = [("idefics2", "whole-images"), ("qwen-vl", "2.5")]
# Decoders and layers of features that another case has as well, here or in test_parity.py.
AGAIN = [("qwen-vl", "2-two-key-heads"), ("idefics3", "idefics3-whole")]
AGAIN += [("paligemma", "gemma-all-key-heads"), ("llava-onevision", "llama-two-features")]
AGAIN += [("llava-next", "one-key-head-tied"), ("llava-next", "mistral")]
AGAIN += [("llama", "all-key-heads"), ("llama", "biases-llama3-rope")]


def quick(cases, always):
    """Return the cases, those beside `always` marked as slow."""
    return [pytest.param(*one, marks=[] if one in always else [pytest.mark.slow]) for one in cases]


OF_LOGITS = quick(CASES, [case for case in CASES if case not in AGAIN])
# What CI leaves out is of cases whose logits it compares.
FURTHER = [pytest.param(*one, marks=[pytest.mark.slow, pytest.mark.families]) for one in AGAIN]
ALL = quick([case for case in CASES if case not in AGAIN], ALWAYS) + FURTHER
SAVED = quick(CASES, FIRST)
OF_FAMILIES = quick(FIRST, ALWAYS)
WITH_IMAGES = quick([case for case in FIRST if case[0] != "llama"], ALWAYS)
OF_SIZES = quick([case for case in FIRST if case[0] != "llama"], ALWAYS[:1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function: family and case → (cases, folder, PyTorch model, loaded)."""

    @functools.cache
    def build(name, case):
        folder = tmp_path_factory.mktemp(f"{name}-{case}")
        reference = FAMILIES[name].write_case(case, folder)
        return FAMILIES[name], folder, reference, loading.load(folder)

    return build


@pytest.mark.parametrize(("name", "case"), OF_LOGITS)
def test_ids_and_logits_equal_those_of_transformers(made, name, case):
    cases, folder, reference, loaded = made(name, case)
    images = cases.image_lists()
    for side in ("left", "right"):
        inputs = cases.torch_inputs(folder, side, images=images)
        batch = loaded.batch(cases.PROMPTS, images, padding_side=side)
        check_ids(inputs, batch)
        check_logits(reference, inputs, forward(loaded.model, batch), batch)


@pytest.mark.parametrize(("name", "case"), OF_FAMILIES)
def test_a_text_only_batch_runs_no_image_tower(made, name, case):
    cases, folder, reference, loaded = made(name, case)
    prompts = cases.text_prompts()
    inputs = cases.torch_inputs(folder, "right", prompts)
    batch = loaded.batch(prompts)
    check_ids(inputs, batch)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), loaded.model)
    broken.text = loaded.model.text
    check_logits(reference, inputs, forward(broken, batch), batch)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_greedy_tokens_equal_those_of_generate(made, name, case):
    cases, folder, reference, loaded = made(name, case)
    images, steps = cases.image_lists(), 8
    inputs = cases.torch_inputs(folder, "left", images=images)
    with torch.no_grad():
        expected = reference.generate(
            **inputs, max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=3
        )
    batch = loaded.batch(cases.PROMPTS, images, padding_side="left")
    tokens_BT, _ = greedy(loaded.model, batch, steps)
    assert tokens_BT.tolist() == expected[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("name", "case"), ALL)
def test_activations_and_gate_gradients_of_every_tower_equal_those_of_hooks(made, name, case):
    """∂L/∂gate = Σ z·∂L/∂z over the example's tokens, for L a weighted sum of logits."""
    cases, folder, reference, loaded = made(name, case)
    images = cases.image_lists()
    inputs = cases.torch_inputs(folder, "right", images=images)
    batch = loaded.batch(cases.PROMPTS, images)
    shape = (*batch.token_ids_BT.shape, loaded.config.text.vocabulary)
    weights_BTV = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weights_BTV *= batch.attention_mask_BT[..., None]
    hooked = hook(cases, reference, inputs, weights_BTV)
    assert set(hooked) == set(loaded.towers)
    slopes, activations = gate_gradients(loaded, batch, weights_BTV)
    for tower, (num_layers, _) in loaded.towers.items():
        assert len(hooked[tower]) == num_layers
        for layer, (z, slope) in enumerate(hooked[tower]):
            own, gated = (
                tokens_of_rows(cases, inputs, tower, z.shape[:-1], tokens_of)
                for tokens_of in (
                    cases.tokens_of_vision_inputs,
                    cases.gated_tokens_of_vision_inputs,
                )
            )
            for row, (tokens, gated_tokens) in enumerate(zip(own, gated, strict=True)):
                z_TF, gated_TF = z[tokens], (z * slope)[gated_tokens]
                mean_F = z_TF.mean(axis=0) if len(z_TF) else np.zeros(z.shape[-1])
                found_F = activations[tower][layer][row]
                np.testing.assert_allclose(found_F, mean_F, atol=TOLERANCE)
                # Sums over some hundred products of size 10.
                np.testing.assert_allclose(
                    slopes[tower][layer][row], gated_TF.sum(axis=0), atol=5e-3, rtol=1e-3
                )


@pytest.mark.parametrize(("name", "case"), OF_FAMILIES)
def test_fold_equals_gates_bit_for_bit_in_every_tower(made, name, case):
    cases, _, _, loaded = made(name, case)
    batch = loaded.batch(cases.PROMPTS, cases.image_lists())
    random = np.random.default_rng(1)
    mask = {tower: random.random(shape) < 0.3 for tower, shape in loaded.towers.items()}
    gates = {tower: 1.0 - mask_LF for tower, mask_LF in mask.items()}
    whole = forward(loaded.model, batch).logits_BTV
    gated = forward(loaded.model, batch, gates).logits_BTV
    folded = forward(masks.fold(loaded, mask).model, batch).logits_BTV
    np.testing.assert_array_equal(np.asarray(folded), np.asarray(gated))
    open_gates = {tower: np.ones_like(gates_LF) for tower, gates_LF in gates.items()}
    for tower in loaded.towers:
        alone = forward(loaded.model, batch, {**open_gates, tower: gates[tower]}).logits_BTV
        assert np.abs(alone - whole).max() > 1e-3, tower


def test_a_tower_without_gates_has_open_ones(made):
    cases, _, _, loaded = made("paligemma", "gemma")
    batch = loaded.batch(cases.PROMPTS, cases.image_lists())
    random = np.random.default_rng(1)
    gates = {tower: random.random(shape) for tower, shape in loaded.towers.items()}
    for tower in loaded.towers:
        others = {other: np.ones(shape) for other, shape in loaded.towers.items()}
        alone = forward(loaded.model, batch, {tower: gates[tower]}).logits_BTV
        among_others = forward(loaded.model, batch, {**others, tower: gates[tower]}).logits_BTV
        # Another program, another order of sums
        np.testing.assert_allclose(alone, among_others, atol=1e-5)


@pytest.mark.parametrize(("name", "case"), OF_FAMILIES)
def test_every_weight_changes_the_logits(made, name, case):
    cases, _, _, loaded = made(name, case)
    batch = loaded.batch(cases.PROMPTS, cases.image_lists())
    mask_BT = batch.attention_mask_BT
    before = forward(loaded.model, batch).logits_BTV[mask_BT]
    leaves, structure = jax.tree.flatten(loaded.model)
    unchanged = set()
    for number, path in enumerate(leaf_names.shapes(loaded.model)):
        leaf = np.asarray(leaves[number])
        stacked = path.rsplit("_", 1)[1].startswith("L")
        for layer in range(leaf.shape[0] if stacked else 1):
            noise = np.random.default_rng(0).normal(0, 0.3, leaf.shape).astype(leaf.dtype)
            if stacked:
                noise[np.arange(len(leaf)) != layer] = 0
            changed = structure.unflatten(leaves[:number] + [leaf + noise] + leaves[number + 1 :])
            after = forward(changed, batch).logits_BTV[mask_BT]
            if np.abs(after - before).max() < TOLERANCE:
                unchanged.add(path)
    # A bias on a key adds the same to all of a query's scores, where no rotation tells keys apart.
    assert unchanged == cases.WITHOUT_EFFECT


@pytest.mark.parametrize(("name", "case"), SAVED)
def test_what_is_saved_equals_what_was_loaded_and_transformers_loads_it(made, tmp_path, name, case):
    cases, folder, reference, loaded = made(name, case)
    loading.save_pretrained(loaded, tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(only(tmp_path / "out"))
    assert {cases.export_name(key): x.tobytes() for key, x in before.items()} == {
        key: x.tobytes() for key, x in after.items()
    }
    again, info = type(reference).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    images = cases.image_lists()
    inputs = cases.torch_inputs(tmp_path / "out", "right", images=images)
    with torch.no_grad():
        assert torch.equal(reference(**inputs).logits, again(**inputs).logits)


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_names_in_memory_load_as_well(made, tmp_path, name, case):
    _, folder, reference, loaded = made(name, case)
    reference.save_pretrained(tmp_path, save_original_format=False)
    loaded.processor.save_pretrained(tmp_path)
    pairs = zip(
        jax.tree.leaves(loaded.model), jax.tree.leaves(loading.load(tmp_path).model), strict=True
    )
    assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("name", "case"), WITH_IMAGES)
def test_features_in_place_of_patches_give_the_same_logits(made, name, case):
    cases, _, _, loaded = made(name, case)
    batch = loaded.batch(cases.PROMPTS, cases.image_lists())
    features = jax.jit(lambda model, images: model.features(images))(loaded.model, batch.images)
    images = dataclasses.replace(
        batch.images, patches_BIPC=None, patch_positions_BIP2=None, features_BIPE=features
    )
    other = dataclasses.replace(batch, images=images)
    np.testing.assert_allclose(
        forward(loaded.model, other).logits_BTV,
        forward(loaded.model, batch).logits_BTV,
        atol=1e-5,  # another program, another order of sums
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), OF_FAMILIES)
def test_a_mesh_gives_the_numbers_of_one_device(made, name, case):
    cases, folder, _, alone = made(name, case)
    prompts, images = cases.PROMPTS + cases.PROMPTS[:1], cases.image_lists()
    batch = alone.batch(prompts, images + images[:1])
    expected = forward(alone.model, batch, None, Capture())
    mesh = parallel.make_mesh(2, 2, 2)
    split = loading.load(folder, mesh=mesh)
    with jax.set_mesh(mesh):
        found = forward(split.model, parallel.put_batch(batch, mesh), None, Capture())
    np.testing.assert_allclose(found.logits_BTV, expected.logits_BTV, atol=5e-5)
    for tower in alone.towers:
        np.testing.assert_allclose(found.activations[tower], expected.activations[tower], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), OF_SIZES)
def test_images_of_many_sizes_go_through_the_tower_once(made, monkeypatch, name, case):
    cases, _, _, loaded = made(name, case)
    lists = cases.image_lists()
    samples = [
        Sample(((prompt + "." * number, False),), tuple(images), f"{prompt}{number}")
        for number in range(3)
        for prompt, images in zip(cases.PROMPTS, lists, strict=True)
    ]
    once = greedy_tokens(loaded, samples, new_tokens=3, batch_size=2)
    tiny_llava.run_image_towers_always(monkeypatch, generate)
    anew = greedy_tokens(loaded, samples, new_tokens=3, batch_size=2)
    for one, other in zip(once, anew, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_prompts_that_join_are_answered_as_in_a_batch(made, monkeypatch, name, case):
    cases, _, _, loaded = made(name, case)
    monkeypatch.setattr(batches, "MAX_BUCKETS", 1)
    lists = cases.image_lists()
    samples = [
        Sample(((prompt + "." * number, False),), tuple(images), f"{prompt}{number}")
        for number in range(4)
        for prompt, images in zip(cases.PROMPTS, lists, strict=True)
    ]
    settings = {"new_tokens": 8, "batch_size": 4}
    expected = greedy_tokens(loaded, samples, **settings)
    monkeypatch.setattr(refilling, "SHORT", 1)
    found = greedy_tokens(loaded, samples, **settings)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("name", "case"), OF_FAMILIES)
def test_a_converted_folder_loads_the_same_model(made, tmp_path, name, case):
    cases, _, _, loaded = made(name, case)
    loading.save_checkpoint(loaded, tmp_path / "converted")
    again = loading.load(tmp_path / "converted")
    pairs = zip(jax.tree.leaves(loaded.model), jax.tree.leaves(again.model), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    prompt, images = cases.PROMPTS[0], cases.image_lists()[0]
    one, other = (x.batch([prompt], [images]).token_ids_BT for x in (loaded, again))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_check_explains_the_folder(made, capsys, name, case):
    _, folder, _, loaded = made(name, case)
    assert check.main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"family       {loaded.family.name} " in printed
    for tower, (layers, neurons) in loaded.towers.items():
        assert f"{tower:12} {layers} layers × {neurons:,} = {layers * neurons:,} neurons" in printed
    known = "|".join(loaded.family.names.prefixes)
    assert re.search(rf"^tensors .* files, ({known}) names$", printed, re.MULTILINE)
    assert "left over    0" in printed


def only(folder):
    (file,) = folder.glob("*.safetensors")
    return file


def check_ids(inputs, batch):
    mask_BT = batch.attention_mask_BT
    np.testing.assert_array_equal(inputs["attention_mask"].numpy(), mask_BT)
    np.testing.assert_array_equal(inputs["input_ids"].numpy()[mask_BT], batch.token_ids_BT[mask_BT])


def hook(cases, reference, inputs, weights_BTV):
    """Return {tower: [(z, ∂L/∂z) of each layer, [rows or vision inputs, tokens, F]]}."""
    kept: dict[str, list] = {}

    def keep(_, arguments, tower):
        (z,) = arguments
        z.retain_grad()
        kept.setdefault(tower, []).append(z)

    handles = [
        module.register_forward_pre_hook(functools.partial(keep, tower=cases.tower_of(name)))
        for name, module in reference.named_modules()
        if cases.tower_of(name)
    ]
    (reference(**inputs).logits * torch.tensor(weights_BTV)).sum().backward()
    for handle in handles:
        handle.remove()
    # Layers after the last one whose result is used run in PyTorch, too, and have no gradient.
    return {
        tower: [(z.detach().numpy(), z.grad.numpy()) for z in layers if z.grad is not None]
        for tower, layers in kept.items()
    }


def tokens_of_rows(cases, inputs, tower, shape, tokens_of):
    """Yield each prompt's tokens in a hooked array, as a bool array of its first two axes.

    tokens_of: the method of `cases` that tells which tokens of vision inputs are no padding.
    """
    if tower == "text":
        for row, valid_T in enumerate(inputs["attention_mask"].numpy().astype(bool)):
            chosen = np.zeros(shape, bool)
            chosen[row] = valid_T
            yield chosen
        return
    valid = tokens_of(inputs, tower, shape[-1])
    for vision_inputs in cases.vision_inputs_of_rows(inputs):
        if len(shape) == 1:  # all vision inputs' patches in one row
            yield valid[vision_inputs].any(axis=0)
            continue
        chosen = np.zeros(shape, bool)
        chosen[vision_inputs] = valid[vision_inputs]
        yield chosen


def gate_gradients(loaded, batch, weights_BTV):
    """Return ∂L/∂gate of one set of gates per example, and the mean activations.

    Both {tower: [L, B, F]}, from one program.
    """
    rows = len(batch.token_ids_BT)
    gates = {t: jnp.ones((layers, rows, F)) for t, (layers, F) in loaded.towers.items()}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slopes_and_activations(gates, model):
        output = model(batch, gates, Capture("mean"))
        return (output.logits_BTV * weights_BTV).sum(), output.activations

    return slopes_and_activations(gates, loaded.model)
