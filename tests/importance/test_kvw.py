"""KVW against PyTorch, token by token and batch by batch."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_llava as tiny
import torch

from manu_jax.config import named_method
from manu_jax.importance import kvw
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.methods import METHODS
from manu_jax.leaves import leaves
from manu_jax.parallel import make_mesh
from manu_jax.types import MODALITIES, ManuError

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import torch_peer  # noqa: E402

FORGET = {modality: tiny.samples(modality, 2) for modality in MODALITIES}
KEEP = {modality: tiny.samples(modality, 7)[2:] for modality in MODALITIES}
ALL_LAYERS = {"text": {"first": 0}}


def job_of(loaded=None, **settings):
    method = named_method("kvw", **settings)
    # An odd size of batches: the last ones are filled up.
    return ScoringJob(loaded or tiny.loaded(), method, FORGET, KEEP, batch_size=3, seed=4)


def inputs_of_down(peer, sample):
    """The inputs of each layer's down projection where the next token is the answer's."""
    seen, places = [], []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        for layer in peer.model.language_model.layers
    ]
    with torch.no_grad():
        ((coded, _),) = torch_peer.outputs(peer, [sample], lambda output: None)
    for hook in hooks:
        hook.remove()
    places = np.flatnonzero(coded.loss_weights_T > 0) - 1
    return [h[0, places] for h in seen]


def mean_sizes(peer, samples):
    """[L, F]: over all tokens of all samples, each token counts once."""
    rows = [inputs_of_down(peer, sample) for sample in samples]
    return torch.stack(
        [torch.cat([one[layer] for one in rows]).abs().mean(0) for layer in range(len(rows[0]))]
    )


@pytest.mark.slow
def test_gates_are_those_of_pytorch_on_a_model_that_every_batch_weakens(monkeypatch):
    order = []
    real = kvw.run_over

    def spy(loaded, samples, step, **settings):
        def noted(total, batch):
            if settings.get("seed") is not None:
                order.append(
                    np.asarray(batch.token_ids_BT)[0][np.asarray(batch.attention_mask_BT)[0]]
                )
            return step(total, batch)

        return real(loaded, samples, noted, **settings)

    monkeypatch.setattr(kvw, "run_over", spy)
    edit = kvw.weaken(job_of(gamma=0.3, layers={"text": {"first": 1, "end": 26}}))
    peer = torch_peer.copy_of_vanilla()
    kept = mean_sizes(peer, [*KEEP["image"], *KEEP["text"]])
    gates = torch.ones(2, 40, dtype=torch.float64)
    coded = {
        tuple(tiny.loaded().encode(one).token_ids_T.tolist()): one
        for forms in FORGET.values()
        for one in forms
    }
    assert len(order) == 4 and {tuple(ids.tolist()) for ids in order} == set(coded)
    for ids in order:
        found = mean_sizes(peer, [coded[tuple(ids.tolist())]])
        excess = ((found + 1e-12).log() - (kept + 1e-12).log()).clamp(min=0)
        factor = torch.exp(-0.3 * excess)
        factor[0] = 1  # the first layer stays
        gates *= factor
        with torch.no_grad():
            for layer, module in enumerate(peer.model.language_model.layers):
                module.mlp.down_proj.weight *= factor[layer]
    found_LF = edit.gates["text"]
    assert found_LF.dtype == np.float32 and (found_LF[0] == 1).all()
    assert (found_LF[1] < 0.9).any()
    np.testing.assert_allclose(found_LF, gates, rtol=1e-4)  # float32 against float64
    edited = edit.apply(tiny.loaded())
    np.testing.assert_allclose(
        leaves(edited.model)["text.layers.mlp.down_LFD"][1].T,
        peer.model.language_model.layers[1].mlp.down_proj.weight.detach(),
        rtol=1e-3, atol=1e-6,
    )  # fmt: skip


def test_at_once_all_facts_are_measured_on_the_model_as_it_was():
    edit = kvw.weaken(job_of(sequential=False, gamma=0.1, layers=ALL_LAYERS))
    peer = torch_peer.copy_of_vanilla()
    kept, found = (mean_sizes(peer, [*forms["image"], *forms["text"]]) for forms in (KEEP, FORGET))
    ratio = (found / kept).clamp(min=1)
    np.testing.assert_allclose(edit.gates["text"], ratio ** (-0.1 * 4), rtol=1e-4)
    halved = kvw.weaken(job_of(sequential=False, gamma=0.1, batch_size=2, layers=ALL_LAYERS))
    np.testing.assert_allclose(halved.gates["text"], ratio ** (-0.1 * 2), rtol=1e-4)


@pytest.mark.slow
def test_the_seed_fixes_the_order_and_a_mesh_changes_nothing():
    one, again = (kvw.weaken(job_of(layers=ALL_LAYERS, gamma=0.5)) for _ in range(2))
    np.testing.assert_array_equal(one.gates["text"], again.gates["text"])
    spread = kvw.weaken(job_of(tiny.on_mesh(make_mesh(2, 2, 2)), layers=ALL_LAYERS, gamma=0.5))
    np.testing.assert_allclose(spread.gates["text"], one.gates["text"], rtol=1e-5)


def test_layers_are_clamped_to_the_model_and_none_is_an_error():
    assert (kvw.weaken(job_of()).gates["text"][0] == 1).all()
    with pytest.raises(ManuError, match=r"kvw\.layers: 5 to before 26, .* layers 0 to 1"):
        kvw.weaken(job_of(layers={"text": {"first": 5, "end": 26}}))
    with pytest.raises(ManuError, match="only the decoder's neurons"):
        job_of(layers={"vision": {"first": 0}})


def test_the_registry_knows_the_method_and_its_settings():
    method = named_method("kvw")
    assert (method.gamma, method.sequential, method.batch_size) == (0.02, True, 1)
    assert METHODS["kvw"].settings is type(method)
    edit = METHODS["kvw"].make(job_of())
    assert edit.describe()[0].startswith("text: scaled ")
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(edit))


@pytest.mark.slow
def test_a_narrow_model_is_measured_in_float32():
    loaded = tiny.loaded()
    narrow = loaded.replace_model(jax.tree.map(lambda x: x.astype("bfloat16"), loaded.model))
    found = kvw.weaken(job_of(narrow, layers=ALL_LAYERS, gamma=0.5)).gates["text"]
    wide = kvw.weaken(job_of(layers=ALL_LAYERS, gamma=0.5)).gates["text"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wide, atol=0.1)  # activations are rounded to 8 bits
