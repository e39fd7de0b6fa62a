"""The ridge edit against PyTorch's rows, by NumPy's least squares."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_llava as tiny
import torch
from test_kvw import inputs_of_down

from manu_jax.config import named_method
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.methods import METHODS
from manu_jax.importance.ridge import redirect
from manu_jax.leaves import leaves
from manu_jax.parallel import make_mesh
from manu_jax.types import MODALITIES, ManuError

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import torch_peer  # noqa: E402

FORGET = {modality: tiny.samples(modality, 2) for modality in MODALITIES}
KEEP = {modality: tiny.samples(modality, 7)[2:] for modality in MODALITIES}
STRANGERS = {modality: tiny.samples(modality, 3, seed=9) for modality in MODALITIES}
DOWN = "text.layers.mlp.down_LFD"


def job_of(loaded=None, strangers=STRANGERS, **settings):
    method = named_method("ridge", **settings)
    return ScoringJob(
        loaded or tiny.loaded(), method, FORGET, KEEP, batch_size=3, strangers=strangers
    )


def both(forms):
    return [*forms["image"], *forms["text"]]


def rows(peer, samples, layer):
    return torch.cat([inputs_of_down(peer, sample)[layer] for sample in samples]).numpy()


def stream(peer, samples, layer):
    """The residual stream after a layer at the tokens before each one of the answer."""
    seen, found = [], []
    module = peer.model.language_model.layers[layer]
    hook = module.register_forward_hook(
        lambda module, given, output: seen.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    for sample in samples:
        with torch.no_grad():
            ((coded, _),) = torch_peer.outputs(peer, [sample], lambda output: None)
        places = np.flatnonzero(coded.loss_weights_T > 0) - 1
        found.append(seen.pop().reshape(-1, 16)[places])
    hook.remove()
    return torch.cat(found).numpy()


@pytest.mark.parametrize("layer", [0, 1])
def test_the_projection_is_the_least_squares_solution_of_pytorchs_rows(layer):
    edit = redirect(job_of(layer=layer, gamma=0.5, strength=2.5))
    peer = torch_peer.copy_of_vanilla()
    direction = stream(peer, both(STRANGERS), layer).mean(0) - stream(
        peer, both(FORGET), layer
    ).mean(0)
    forget, keep = (rows(peer, both(forms), layer) for forms in (FORGET, KEEP))
    weight = peer.model.language_model.layers[layer].mlp.down_proj.weight.detach().numpy().T
    inputs = np.concatenate([forget, keep])
    targets = inputs @ weight
    targets[: len(forget)] += 2.5 * direction
    # min ‖H W − T‖² + γ ‖W‖², as rows below those of H.
    augmented = np.concatenate([inputs, np.sqrt(0.5) * np.eye(40)])
    expected, *_ = np.linalg.lstsq(
        augmented, np.concatenate([targets, np.zeros((40, 16))]), rcond=None
    )
    assert edit.layers == (layer,) and edit.values[DOWN].shape == (1, 40, 16)
    assert np.abs(expected - weight).max() > 0.1
    np.testing.assert_allclose(edit.values[DOWN][0], expected, atol=2e-4)  # rows are float32's

    edited = leaves(edit.apply(tiny.loaded()).model)
    before = leaves(tiny.loaded().model)
    np.testing.assert_array_equal(edited[DOWN][layer], edit.values[DOWN][0])
    np.testing.assert_array_equal(edited[DOWN][1 - layer], before[DOWN][1 - layer])


@pytest.mark.slow
def test_a_mesh_gives_the_same_projection():
    alone = redirect(job_of(layer=1)).values[DOWN]
    spread = redirect(job_of(tiny.on_mesh(make_mesh(2, 2, 2)), layer=1)).values[DOWN]
    np.testing.assert_allclose(spread, alone, atol=1e-4)


def test_without_strength_what_the_rows_say_stays_but_for_the_penalty():
    edit = redirect(job_of(layer=1, strength=0.0, gamma=1e-6))
    peer = torch_peer.copy_of_vanilla()
    weight = peer.model.language_model.layers[1].mlp.down_proj.weight.detach().numpy().T
    inputs = rows(peer, both(KEEP), 1)
    np.testing.assert_allclose(inputs @ edit.values[DOWN][0], inputs @ weight, atol=1e-3)


def test_the_layer_is_at_lunars_depth_unless_given_and_faults_are_named():
    method = named_method("ridge")
    assert METHODS["ridge"].settings is type(method) and method.layer is None
    assert METHODS["ridge"].make(job_of()).layers == (1,)  # 22 of 32, of two
    with pytest.raises(ManuError, match=r"ridge\.layer: 2, but the decoder has layers 0 to 1"):
        redirect(job_of(layer=2))
    with pytest.raises(ManuError, match="no questions about strangers"):
        redirect(job_of(strangers={}))
