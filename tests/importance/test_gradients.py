import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax.importance import gradients
from manu_jax.models.nn import mlp
from manu_jax.models.nn.answers import answer_log_odds, logits_at_answers
from manu_jax.types import ManuError, VisionInput


def by_definition(model, batch, towers, *, objective, gates):
    """Return what `per_example_gradients` returns, by `jax.vmap(jax.grad(...))`."""
    ones = {tower: jnp.ones((L, F)) for tower, (L, F) in towers.items()}

    def single(scales, example):
        scaled = gates | {tower: scales[tower] * gates.get(tower, 1) for tower in scales}
        found = logits_at_answers(model, jax.tree.map(lambda x: x[None], example), gates=scaled)
        values_B = gradients.ATTRIBUTION_OBJECTIVES[objective](*found)
        return values_B[0], values_B[0]

    found, values_B = jax.vmap(jax.grad(single, has_aux=True), in_axes=(None, 0))(ones, batch)
    return {tower: g_BLF.swapaxes(0, 1) for tower, g_BLF in found.items()}, values_B


@functools.cache
def compiled(definition, modality, objective):
    towers = dict(tiny.loaded().towers)
    if modality == "text":
        towers.pop("vision")
    function = by_definition if definition else gradients.per_example_gradients
    return jax.jit(
        lambda model, batch, gates: function(model, batch, towers, objective=objective, gates=gates)
    )


def gradients_of(batch, gates=None, *, definition=False, objective="log_odds"):
    towers = tiny.loaded().towers
    gates = {"text": np.ones(towers["text"], np.float32)} | (gates or {})
    modality = "text" if batch.images is None else "image"
    return compiled(definition, modality, objective)(tiny.loaded().model, batch, gates)


@pytest.mark.parametrize(
    ("modality", "objective"), [("image", "log_odds"), ("text", "log_likelihood")]
)
def test_one_backward_pass_equals_the_definition(modality, objective):
    batch = tiny.batch(modality)
    ours, values_B = gradients_of(batch, objective=objective)
    defined, defined_B = gradients_of(batch, definition=True, objective=objective)
    assert set(ours) == set(defined) == ({"text", "vision"} if modality == "image" else {"text"})
    np.testing.assert_allclose(values_B, defined_B, atol=1e-5)
    for tower in ours:
        scale = np.abs(defined[tower]).max()
        assert scale > 1e-4
        # float32 rounding of sums in another order, relative to the largest gradient
        np.testing.assert_allclose(ours[tower], defined[tower], atol=2e-6 * scale)


def test_gates_scale_and_silence_neurons():
    batch = tiny.batch("image")
    gate_LF = np.ones(tiny.loaded().towers["text"], np.float32)
    gate_LF[0, :10] = 0
    ours, _ = gradients_of(batch, {"text": gate_LF})
    defined, _ = gradients_of(batch, {"text": gate_LF}, definition=True)
    assert (np.asarray(ours["text"])[0, :, :10] == 0).all()
    np.testing.assert_allclose(ours["text"], defined["text"], atol=1e-5)
    plain, _ = gradients_of(batch)
    assert not np.allclose(plain["text"][0, :, 10:], ours["text"][0, :, 10:], atol=1e-5)


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({"txt": np.ones((2, 40))}, r'tower "txt" is not there \(it has text, vision\)'),
        ({"text": np.ones((2, 1))}, r"shape \(2, 1\), expected \(2, 40\) or \(2, B, 40\)"),
        ({"vision": np.ones(24)}, r"shape \(24,\), expected \(2, 24\) or \(2, B, 24\)"),
    ],
)
def test_gates_of_no_tower_or_of_other_shapes_are_errors(gates, message):
    """A name that is not known would do nothing, and have an attribution of zeros."""
    with pytest.raises(ManuError, match=f"gates do not fit the model: .*{message}"):
        tiny.loaded().model(tiny.batch("text"), gates=gates)


def test_attributions_of_a_bfloat16_model_are_summed_in_float32(monkeypatch):
    """They equal the sums in float64 of the same bfloat16 neurons times the same cotangents."""
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.loaded().model)
    batch, (L, F) = tiny.batch("text", 2), tiny.loaded().towers["text"]
    tap_L2BTF = jnp.zeros((L, 2, *batch.token_ids_BT.shape, F))
    # Else two programs round to bfloat16 in different places.
    jit = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    found, _ = jit(
        lambda m, b: gradients.per_example_gradients(m, b, {"text": (L, F)}, remat="none")
    )(model, batch)
    monkeypatch.setattr(mlp, "scaled", recorded)
    parts_L2BTF = jit(
        jax.grad(
            lambda tap, m, b: answer_log_odds(
                *logits_at_answers(m, b, gates={"text": tap}, remat="none")
            ).sum()
        )
    )(tap_L2BTF, model, batch)
    z_LBTF, dz_LBTF = np.asarray(parts_L2BTF, np.float64).swapaxes(0, 1)
    assert_summed_in_float32(found["text"], z_LBTF * dz_LBTF, axis=2)


@pytest.mark.parametrize(("shape", "axis"), [((2, 8), 1), ((8,), (0, 1))])
def test_gradients_of_gates_are_summed_in_float32(shape, axis):
    """Whether each example has gates of its own, or all have the same."""
    z_BTF, dz_BTF = np.random.default_rng(0).normal(size=(2, 2, 300, 8)).astype(jnp.bfloat16)
    _, pull = jax.vjp(mlp.scaled, z_BTF, jnp.ones(shape))
    terms_BTF = z_BTF.astype(np.float64) * dz_BTF.astype(np.float64)
    assert_summed_in_float32(jax.jit(pull)(dz_BTF)[1], terms_BTF, axis=axis)


def assert_summed_in_float32(found, terms, axis):
    sizes = np.abs(terms).sum(axis=axis)
    assert found.dtype == np.float32 and (sizes > 0).mean() > 0.9
    # A few roundings of float32; one of bfloat16 is 2e-3.
    assert (np.abs(found - terms.sum(axis=axis)) <= 1e-6 * sizes).all()


@jax.custom_vjp
def recorded(z_BTF, tap_2BTF):
    """Return the neurons as they are; the "gradient" of the tap is they and their cotangents."""
    return z_BTF


recorded.defvjp(
    lambda z_BTF, tap_2BTF: (z_BTF, z_BTF),
    lambda z_BTF, dz_BTF: (dz_BTF, jnp.stack([z_BTF, dz_BTF]).astype(jnp.float32)),
)


def test_padding_does_not_change_a_gradient():
    tight, _ = gradients_of(tiny.batch("image"))
    wide, _ = gradients_of(tiny.batch("image", length=64, batch_size=8, padding_side="left"))
    for tower in tight:
        np.testing.assert_allclose(tight[tower], wide[tower][:, :6], atol=1e-5)


def test_attribution_is_the_change_when_a_neuron_is_scaled():
    loaded = tiny.loaded()
    batch = tiny.batch("image")
    found, _ = gradients_of(batch)

    @jax.jit
    def values(gates):
        return answer_log_odds(loaded.model(batch, gates=gates).logits_BTV, batch)

    step = 1e-2
    ones = {tower: np.ones(shape, np.float32) for tower, shape in loaded.towers.items()}
    for tower, (layer, neuron) in (("text", (0, 3)), ("text", (1, 17)), ("vision", (1, 5))):
        up, down = ones[tower].copy(), ones[tower].copy()
        up[layer, neuron] += step
        down[layer, neuron] -= step
        slope_B = (values(ones | {tower: up}) - values(ones | {tower: down})) / (2 * step)
        # central difference in float32: rounding 1e-6 / 1e-2
        np.testing.assert_allclose(found[tower][layer, :, neuron], slope_B, atol=5e-4)


def test_row_sums_of_the_down_matrix_give_the_same_attribution():
    # Σ_D W_down ∘ ∂L/∂W_down = Σ_tokens z · ∂L/∂z, for a batch of one.
    loaded = tiny.loaded()
    batch = tiny.batch("image", 1)
    gradient = jax.jit(jax.grad(lambda model: answer_log_odds(model(batch).logits_BTV, batch)[0]))(
        loaded.model
    )
    found, _ = gradients_of(tiny.batch("image"))
    for tower in ("text", "vision"):
        down_LFD = getattr(loaded.model, tower).layers.mlp.down_LFD[...]
        slope_LFD = getattr(gradient, tower).layers.mlp.down_LFD[...]
        expected_LF = jnp.einsum("LFD,LFD->LF", down_LFD, slope_LFD)
        scale = np.abs(expected_LF).max()
        np.testing.assert_allclose(found[tower][:, 0], expected_LF, atol=5e-6 * scale)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_gradients_equal_those_of_torch_hooks_and_autograd(tmp_path, modality):
    torch = pytest.importorskip("torch")
    from transformers import LlavaForConditionalGeneration

    from manu_jax.models.loaded import save_pretrained

    loaded = tiny.loaded()
    save_pretrained(loaded, tmp_path / "model")
    peer = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    peer.eval()
    texts, visions = {}, {}

    def keep(store, index):
        def hook(module, arguments):
            arguments[0].retain_grad()
            store[index] = arguments[0]

        return hook

    for i, layer in enumerate(peer.model.language_model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(keep(texts, i))
    vision = getattr(peer.model.vision_tower, "vision_model", peer.model.vision_tower)
    for i, layer in enumerate(vision.encoder.layers):
        layer.mlp.fc2.register_forward_pre_hook(keep(visions, i))

    batch = tiny.batch(modality)
    found, values_B = gradients_of(batch)
    towers = {tower: loaded.towers[tower] for tower in found}
    for b in range(2):
        valid = batch.attention_mask_BT[b]
        inputs = {"input_ids": torch.tensor(batch.token_ids_BT[b][valid][None])}
        if modality == "image":
            vision_inputs = [
                VisionInput(patches, None, 0) for patches in batch.images.patches_BIPC[b]
            ]
            inputs["pixel_values"] = torch.tensor(tiny.pixels(vision_inputs))
        logits = peer(**inputs).logits[0]
        chosen = torch.tensor(batch.loss_weights_BT[b][valid] > 0)[1:]
        log_p = torch.log_softmax(logits[:-1].double(), -1)
        log_p = log_p.gather(1, inputs["input_ids"][0, 1:, None])[:, 0]
        value = (log_p - torch.log1p(-log_p.exp()))[chosen].mean()
        value.backward()
        np.testing.assert_allclose(values_B[b], value.item(), atol=1e-4)
        for tower, store in (("text", texts), ("vision", visions)):
            if tower not in towers:
                continue
            for layer in range(towers[tower][0]):
                z = store[layer]
                expected_F = (z * z.grad).sum(dim=tuple(range(z.ndim - 1))).detach().numpy()
                # two frameworks in float32, relative to the tower's largest gradient
                scale = np.abs(found[tower]).max()
                np.testing.assert_allclose(found[tower][layer, b], expected_F, atol=5e-5 * scale)
