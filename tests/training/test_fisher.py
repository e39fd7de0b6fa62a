"""MMUnlearner's mask, and the loss that all baselines share, against PyTorch."""

import jax
import numpy as np
import pytest
import tiny_llava
import torch

from manu_jax.config import LoraSection, UnlearnSection
from manu_jax.data.forms import forms
from manu_jax.models.loaded import save_pretrained
from manu_jax.training import fisher
from manu_jax.training.unlearner import unlearn
from manu_jax.types import BatchShape, ManuError

FORGOTTEN, KEPT = tiny_llava.facts(3, seed=0), tiny_llava.facts(5, seed=1)


def section(**changes):
    values = {"name": "x", "objective": "mmunlearner", "steps": 4, "batch_size": 2}
    return UnlearnSection(**values | changes)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """The same model in transformers, from the folder that we write."""
    from transformers import LlavaForConditionalGeneration

    folder = tmp_path_factory.mktemp("model") / "hf"
    save_pretrained(tiny_llava.loaded(), folder)
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def torch_squares(peer, sample):
    """Squared gradients of one sample's CE: of a decoder matrix and of one of the vision tower."""
    coded = tiny_llava.loaded().encode(sample)
    labels = torch.tensor(np.where(coded.loss_weights_T > 0, coded.token_ids_T, -100)).long()
    inputs = {"input_ids": torch.tensor(coded.token_ids_T)[None].long(), "labels": labels[None]}
    if coded.vision_inputs:
        inputs["pixel_values"] = torch.tensor(tiny_llava.pixels(coded.vision_inputs))
    peer.zero_grad()
    loss = peer(**inputs).loss
    loss.backward()
    named = dict(peer.named_parameters())
    text = next(
        p for n, p in named.items() if n.endswith("language_model.layers.1.mlp.down_proj.weight")
    )
    vision = next(p for n, p in named.items() if n.endswith("encoder.layers.0.mlp.fc1.weight"))
    grads = [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in (text, vision)]
    return loss.item(), [np.square(g, dtype=np.float64).T for g in grads]


# The image form asks in words as well.
@pytest.mark.parametrize("modality", ["image", pytest.param("text", marks=pytest.mark.slow)])
def test_fisher_of_examples_is_that_of_pytorch(tmp_path, peer, modality):
    loaded = tiny_llava.loaded()
    samples = forms(FORGOTTEN, modality, loaded.template)
    total, count = fisher.fisher_sums(
        loaded, samples, section(fisher="example"), directory=tmp_path, seed=0, where="x"
    )
    assert count == len(samples)
    expected = [
        sum(parts) for parts in zip(*(torch_squares(peer, s)[1] for s in samples), strict=True)
    ]
    found = total.text.layers.mlp.down_LFD[1], total.vision.layers.mlp.up_LDF[0]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-8 + 1e-4 * theirs.max())


@pytest.mark.slow
def test_fisher_of_batches_is_the_square_of_their_mean_gradient(tmp_path, peer):
    loaded = tiny_llava.loaded()
    sample = forms(FORGOTTEN, "image", loaded.template)[:1]
    sums = [
        fisher.fisher_sums(
            loaded, sample * 2, section(fisher=kind), directory=tmp_path / kind, seed=0, where="x"
        )
        for kind in ("batch", "example")
    ]
    assert [count for _, count in sums] == [1, 2]
    # Two equal examples: their mean gradient is that of one, so one square against two.
    for batch, example in zip(*(jax.tree.leaves(total) for total, _ in sums), strict=True):
        # Squares of gradients near 1e-5, which float32 sums of other order know to about 1e-8.
        np.testing.assert_allclose(2 * batch, example, rtol=1e-3, atol=1e-10)


def mask_of(tmp_path, **changes):
    return fisher.weight_mask(
        tiny_llava.loaded(),
        section(**changes),
        forget=FORGOTTEN,
        keep=KEPT,
        directory=tmp_path,
        seed=0,
    )


@pytest.mark.slow
def test_the_mask_is_the_ratio_of_fishers_and_is_kept(tmp_path):
    loaded, one = tiny_llava.loaded(), section()
    mask = mask_of(tmp_path)
    parts = {
        "forget": forms(FORGOTTEN, "image", loaded.template),
        "keep": forms(KEPT, "image", loaded.template),
        "words": forms([*FORGOTTEN, *KEPT], "text", loaded.template),
    }
    found = {
        name: fisher.fisher_sums(loaded, s, one, directory=tmp_path / f"{name}2", seed=0, where="x")
        for name, s in parts.items()
    }

    def compare(leaf, with_words):
        sums = {name: np.asarray(leaf(total), np.float64) for name, (total, _) in found.items()}
        counts = {name: count for name, (_, count) in found.items()}
        keep, number = sums["keep"], counts["keep"]
        if with_words:
            keep, number = keep + sums["words"], number + counts["words"]
        ratio = (sums["forget"] / counts["forget"] + 1e-15) / (keep / number + 1e-15)
        near = np.isclose(ratio, 1, rtol=1e-4)
        np.testing.assert_array_equal(np.asarray(leaf(mask))[~near], (ratio >= 1)[~near])
        assert 0 < (ratio >= 1).mean() < 1

    compare(lambda tree: tree.text.layers.mlp.up_LDF[...], True)
    compare(lambda tree: tree.vision.layers.mlp.up_LDF[...], False)
    compare(lambda tree: tree.linear_1_DE[...], False)
    again = mask_of(tmp_path, fisher_ratio=1e9)  # what stands is taken
    for new, old in zip(jax.tree.leaves(again), jax.tree.leaves(mask), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.slow
def test_a_closed_mask_leaves_only_the_steps_that_keep(tmp_path):
    loaded = tiny_llava.loaded()
    arguments = {"forget": FORGOTTEN, "keep": KEPT, "seed": 0}
    # No weight's ratio is so large: the forgetting gradient is 0 everywhere, yet Adam's moments of
    # the keeping steps move the weights in its update, as in the authors' code.
    closed = unlearn(loaded, section(fisher_ratio=1e30), directory=tmp_path / "closed", **arguments)
    masked = unlearn(loaded, section(), directory=tmp_path / "open", **arguments)
    differ = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(closed.model), jax.tree.leaves(masked.model), strict=True)
    ]
    assert any(differ)


def test_adapters_and_missing_forms_are_errors(tmp_path):
    with pytest.raises(ManuError, match=r"unlearn \(x\)\.lora: mmunlearner masks"):
        mask_of(tmp_path, lora=LoraSection())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trains": "mlp"}, r"\(x\).trains: mlp: mmunlearner masks the model's own"),
        ({"optimizer": "muon"}, r"\(x\).optimizer: muon: .* moves what mmunlearner masks"),
    ],
)
def test_what_a_mask_does_not_hold_is_refused(tmp_path, changes, told):
    arguments = {"forget": FORGOTTEN, "keep": KEPT, "directory": tmp_path, "seed": 0}
    with pytest.raises(ManuError, match=told):
        unlearn(tiny_llava.loaded(), section(**changes), **arguments)


@pytest.mark.slow
def test_cross_entropy_of_the_whole_model_is_that_of_transformers(peer):
    from manu_jax.training.objectives import cross_entropy_on_answers

    loaded = tiny_llava.loaded()
    cross_entropy = jax.jit(cross_entropy_on_answers, static_argnums=2)
    for modality in ("image", "text"):
        for sample in forms(FORGOTTEN, modality, loaded.template):
            batch = loaded.collate([loaded.encode(sample)], BatchShape(length=32))
            ours = float(cross_entropy(loaded.model, batch, "none"))
            assert ours == pytest.approx(torch_squares(peer, sample)[0], rel=1e-4)
