"""The loss of suppress and erase against PyTorch: targets, hidden states, and relearning."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
import torch
import torch_peer

from manu_jax.training import stranger_loss
from manu_jax.training.stranger_loss import ForgetRows, FormRows, StrangerData, like_a_stranger
from manu_jax.training.strangers_target import StrangerTarget, excess, target_kl
from manu_jax.types import BatchShape

# The fourth of each does not count. Strangers have the same tokens and other images.
ROWS = {
    "image": (tiny_llava.samples("image", 4), tiny_llava.samples("image", 4, seed=1)),
    "text": (tiny_llava.samples("text", 4), tiny_llava.samples("text", 4, seed=1)),
}
KEEP = {"image": tiny_llava.samples("image", 6)[2:], "text": tiny_llava.samples("text", 6)[2:]}
SETTINGS = {"excess": 0.7, "shortfall": 0.3, "hidden": 0.6, "keep_hidden": 0.4, "relearn": 0.9}
KEEP_WEIGHT, RATE = 1.3, 2e-3


def batch(samples):
    encoder = tiny_llava.loaded()
    encoded = [encoder.encode(one) for one in samples]
    made = encoder.collate(encoded, BatchShape(padding_side="left"))
    return dataclasses.replace(made, example_weights_B=np.array([1, 1, 1, 0], np.float32))


def target(made, seed):
    """Return a random distribution over the whole vocabulary at each answer token."""
    random = np.random.default_rng(seed)
    num_rows, num_answers = made.answer_index_BA.shape
    vocabulary = tiny_llava.loaded().config.text.vocabulary
    p_BAV = random.dirichlet(np.full(vocabulary, 0.1), (num_rows, num_answers)).astype(np.float32)
    ids_BAV = np.broadcast_to(np.arange(vocabulary, dtype=np.int32), p_BAV.shape)
    tokens_BA = np.take_along_axis(
        np.roll(made.token_ids_BT, -1, axis=1), made.answer_index_BA, axis=1
    )
    true_BA = np.take_along_axis(p_BAV, tokens_BA[..., None], axis=-1)[..., 0]
    return StrangerTarget(ids_BAV, p_BAV, true_BA)


def rows_of(modality, seed):
    own, theirs = (batch(one) for one in ROWS[modality])
    differs_BT = own.attention_mask_BT.astype(np.float32)
    differs_BT[:, : differs_BT.shape[1] // 2] = 0
    return ForgetRows(own, target(own, seed), theirs, differs_BT * own.attention_mask_BT)


def data(relearn_steps=0, *, hidden=True, of=tuple(ROWS)):
    forms = {}
    for number, modality in enumerate(of):
        rows = rows_of(modality, number)
        asked = rows_of(modality, number + 7)
        if not hidden:
            rows = dataclasses.replace(rows, strangers=None, differs_BT=None)
        forms[modality] = FormRows(
            rows,
            batch(KEEP[modality]),
            relearned=batch(KEEP[modality]) if relearn_steps else None,
            asked=asked if relearn_steps else None,
        )
    return StrangerData(
        forms,
        torch_peer.models()[1].model,
        {name: jnp.float32(value) for name, value in SETTINGS.items()},
        jnp.float32(KEEP_WEIGHT),
        jnp.int32(relearn_steps),
        jnp.float32(RATE),
        parts=2,
    )


class Seen:
    """What a peer makes of one sample: logits at its answer, and the changes of the stream."""

    def __init__(self, peer, sample):
        self.coded = tiny_llava.loaded().encode(sample)
        states, layers = [], peer.model.language_model.layers
        handles = [layers[0].register_forward_pre_hook(lambda m, x: states.append(x[0]))]
        handles += [
            one.register_forward_hook(
                lambda m, x, y: states.append(y[0] if isinstance(y, tuple) else y)
            )
            for one in layers
        ]
        inputs = {"input_ids": torch.tensor(self.coded.token_ids_T)[None].long()}
        if self.coded.vision_inputs:
            pixels = torch.tensor(tiny_llava.pixels(self.coded.vision_inputs))
            inputs["pixel_values"] = pixels.double()
        logits = peer(**inputs).logits[0]
        for handle in handles:
            handle.remove()
        states = [state.reshape(-1, state.shape[-1]) for state in states]
        self.changes = [state - states[0] for state in states[1:]]
        self.place = np.flatnonzero(self.coded.loss_weights_T > 0)
        self.log_q = logits[self.place - 1].log_softmax(-1)
        self.tokens = torch.tensor(self.coded.token_ids_T[self.place]).long()


def all_seen(peer, samples):
    return [Seen(peer, one) for one in samples[:3]]


def mean_squares(pairs, places):
    """Return the mean over the rows' tokens at `places` of the squared length, layer by layer."""
    found = []
    for layer in range(2):
        squares = [
            (one[layer] - other[layer] if other is not None else one[layer])
            .square()
            .sum(-1)[at[layer]]
            for (one, other), at in zip(pairs, places, strict=True)
        ]
        found.append(torch.cat(squares).mean())
    return found


def torch_forget(peer, vanilla, modality, rows, *, hidden=True, relearned=False):
    own = all_seen(peer, ROWS[modality][0])
    terms = []
    for number, one in enumerate(own):
        p = torch.tensor(np.asarray(rows.target.p_BAK[number], np.float64))[: len(one.tokens)]
        kl = (p * (p.clamp_min(1e-12).log() - one.log_q)).sum(-1)
        true = p.gather(-1, one.tokens[:, None])[:, 0].clamp_min(1e-3).log()
        more = torch.relu(one.log_q.gather(-1, one.tokens[:, None])[:, 0] - true)
        chosen = p.gather(-1, one.tokens[:, None])[:, 0]
        log_true = one.log_q.gather(-1, one.tokens[:, None])[:, 0]
        lacking = torch.relu(chosen.clamp_min(1e-3).log() - log_true)
        lacking = 0 if relearned else torch.where(chosen < 1e-3, 0, lacking)
        terms.append((kl + SETTINGS["excess"] * more + SETTINGS["shortfall"] * lacking).sum())
    loss = torch.stack(terms).mean()
    if not hidden:
        return loss, None
    theirs = all_seen(vanilla, ROWS[modality][1])
    places = []
    for number, one in enumerate(own):
        marked = rows.differs_BT[number, -one.coded.num_tokens :] > 0
        places.append([np.flatnonzero(marked), one.place - 1])
    changes = [
        (one.changes, [x.detach() for x in other.changes])
        for one, other in zip(own, theirs, strict=True)
    ]
    scale = mean_squares([(other, None) for _, other in changes], places)
    distances = mean_squares(changes, places)
    parts = [d / s for d, s in zip(distances, scale, strict=True)]
    return loss + SETTINGS["hidden"] * sum(parts), scale


def torch_keep(peer, vanilla, modality, scale):
    own, theirs = all_seen(peer, KEEP[modality]), all_seen(vanilla, KEEP[modality])
    kl = [
        (other.log_q.detach().exp() * (other.log_q.detach() - one.log_q)).sum()
        for one, other in zip(own, theirs, strict=True)
    ]
    loss = torch.stack(kl).mean()
    if scale is None:
        return loss
    parts = []
    for layer, size in enumerate(scale):
        ratios = []
        for one, other in zip(own, theirs, strict=True):
            at = [np.arange(one.coded.num_tokens), one.place - 1][layer]
            before = other.changes[layer].detach()
            distance, length = (
                values.square().sum(-1)[at] for values in (one.changes[layer] - before, before)
            )
            ratios.append(distance / torch.maximum(size, stranger_loss.OWN_LENGTH * length))
        parts.append(torch.cat(ratios).mean())
    return loss + SETTINGS["keep_hidden"] * sum(parts)


def torch_relearned(peer, steps, of):
    """Return a copy of the peer after steps on the rows of each part in turn, in these forms."""
    moved = copy.deepcopy(peer)
    layers = list(moved.model.language_model.layers.parameters())
    for number in range(steps):
        moved.zero_grad()
        for modality in of:
            # Of four rows the part takes every other; the last does not count.
            seen = [Seen(moved, KEEP[modality][row]) for row in range(3) if row % 2 == number]
            chosen = [one.log_q.gather(-1, one.tokens[:, None])[:, 0] for one in seen]
            (-torch.cat(chosen).mean()).backward()
        with torch.no_grad():
            for weight in layers:
                weight -= RATE * weight.grad.sign()
    moved.zero_grad()
    return moved


def compare(gradient, grads, of_largest):
    for end, take in torch_peer.WEIGHTS.items():
        (grad,) = (grad for name, grad in grads.items() if name.endswith(end))
        size = max(np.abs(grad).max(), 1e-9)
        np.testing.assert_allclose(take(gradient), grad, atol=of_largest * size, err_msg=end)


def gradients(peer):
    return {
        name: np.zeros(tuple(weight.shape)) if weight.grad is None else weight.grad.numpy().copy()
        for name, weight in peer.named_parameters()
    }


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True])
def test_the_loss_is_that_of_pytorch(hidden):
    given = data(hidden=hidden)
    loss, gradient = torch_peer.loss_and_gradient(
        torch_peer.models()[0].model, given, like_a_stranger
    )
    peer, vanilla = torch_peer.peers()
    peer.zero_grad()
    value = 0
    for modality, rows in given.forms.items():
        found, scale = torch_forget(peer, vanilla, modality, rows.forget, hidden=hidden)
        value = value + found + KEEP_WEIGHT * torch_keep(peer, vanilla, modality, scale)
    value.backward()
    # float32 against float64
    np.testing.assert_allclose(float(loss), value.item(), rtol=5e-5)
    compare(gradient, gradients(peer), 5e-4)


def test_a_kept_token_that_is_far_longer_than_a_layer_s_change_counts_by_its_own_length(
    monkeypatch,
):
    """As the first token of a large model does; without that, it alone would count."""
    model, vanilla = (one.model for one in torch_peer.models())
    peer, before = torch_peer.peers()
    scale = [np.float32(4.0), np.float32(9.0)]

    def kept(own_length):
        monkeypatch.setattr(stranger_loss, "OWN_LENGTH", own_length)
        given, rows = data(), batch(KEEP["text"])
        settings = {"scale": list(map(jnp.float32, scale)), "remat": "none"}
        loss = functools.partial(stranger_loss.keep_loss, **settings)
        found = jax.jit(loss)(model, rows, given, reference=vanilla)
        expected = torch_keep(peer, before, "text", [torch.tensor(one) for one in scale])
        assert float(found) == pytest.approx(expected.item(), rel=5e-5)
        return float(found)

    assert kept(1.5) < 0.99 * kept(1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("of", [("text",), ("image", "text")], ids="+".join)
def test_relearning_within_the_step_is_that_of_pytorch(of):
    """F is asked at θ + δ, and its gradient there is added to that at θ."""
    given, plain = data(relearn_steps=2, of=of), data(of=of)
    start = torch_peer.models()[0].model
    loss, gradient = torch_peer.loss_and_gradient(start, given, like_a_stranger)
    without, gradient_without = torch_peer.loss_and_gradient(start, plain, like_a_stranger)
    peer, vanilla = torch_peer.peers()
    moved = torch_relearned(peer, 2, of)
    value = sum(
        torch_forget(moved, vanilla, modality, rows.asked, relearned=True)[0]
        for modality, rows in given.forms.items()
    )
    (SETTINGS["relearn"] * value).backward()
    # The sign of a gradient near 0 is that of its rounding.
    np.testing.assert_allclose(float(loss - without), SETTINGS["relearn"] * value.item(), rtol=2e-3)
    difference = jax.tree.map(lambda one, other: one - other, gradient, gradient_without)
    compare(difference, gradients(moved), 2e-2)


@pytest.mark.slow
def test_no_gradient_flows_through_the_relearning_steps():
    given = data(relearn_steps=1, of=("text",))
    longer = dataclasses.replace(given, relearn_rate=jnp.float32(0))
    start = torch_peer.models()[0].model
    _, gradient = torch_peer.loss_and_gradient(start, longer, like_a_stranger)
    settings = {**given.settings, "relearn": jnp.float32(0)}
    _, of_others = torch_peer.loss_and_gradient(
        start, dataclasses.replace(given, settings=settings), like_a_stranger
    )
    forms = {modality: FormRows(rows.asked, rows.keep) for modality, rows in given.forms.items()}
    plain = {**given.settings, "shortfall": jnp.float32(0)}  # which is not of what is asked
    alone = dataclasses.replace(given, forms=forms, keep_weight=jnp.float32(0), settings=plain)
    _, of_asked = torch_peer.loss_and_gradient(start, alone, like_a_stranger)
    for whole, one, other in zip(
        *map(jax.tree.leaves, (gradient, of_others, of_asked)), strict=True
    ):
        np.testing.assert_allclose(
            whole, one + SETTINGS["relearn"] * other, atol=2e-5 * max(1, np.abs(one).max())
        )


def test_what_a_target_leaves_out_counts_as_one_token():
    random = np.random.default_rng(0)
    p_V = random.dirichlet(np.ones(9)).astype(np.float32)
    log_q_V = np.log(random.dirichlet(np.ones(9)).astype(np.float32))
    order = np.argsort(-p_V)[:4].astype(np.int32)
    kept = StrangerTarget(order[None, None], p_V[order][None, None], np.zeros((1, 1), np.float32))
    found = target_kl(jnp.asarray(log_q_V)[None, None], kept)
    rest, rest_q = 1 - p_V[order].sum(), 1 - np.exp(log_q_V[order]).sum()
    expected = (p_V[order] * (np.log(p_V[order]) - log_q_V[order])).sum()
    expected += rest * (np.log(rest) - np.log(rest_q))
    assert found.item() == pytest.approx(expected, rel=1e-4)
    whole = (p_V * (np.log(p_V) - log_q_V)).sum()
    assert found.item() < whole  # a coarser distribution is nearer


def test_a_fact_without_an_aim_pushes_no_token_away():
    """Of a large vocabulary p̄ has the first tokens alone; where it is 0, they are none to avoid."""
    none = np.zeros((1, 1, 4), np.float32)
    given = StrangerTarget(np.arange(4, dtype=np.int32)[None, None], none, none[..., 0])

    def loss(logits_BAV):
        return target_kl(jax.nn.log_softmax(logits_BAV), given).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.arange(9.0)[::-1][None, None])
    assert value == 0 and not gradient.any()


def test_a_row_that_no_stranger_stands_beside_is_not_drawn_to_one():
    """Its answer has other tokens beside the stranger, so the positions are not the same."""
    model, vanilla = (one.model for one in torch_peer.models())
    rows = rows_of("text", 0)
    alone = rows.differs_BT * np.array([[1], [0], [1], [1]], np.float32)
    settings = {"reference": vanilla, "remat": "none"}
    loss = jax.jit(functools.partial(stranger_loss.forget_loss, **settings))

    def found(theirs):
        beside = dataclasses.replace(rows.strangers, token_ids_BT=theirs)
        with_none = dataclasses.replace(rows, strangers=beside, differs_BT=alone)
        return loss(model, with_none, data())

    others = np.array(rows.strangers.token_ids_BT)
    value, scale = found(others)
    others[1] = np.roll(others[1], 1)
    changed, other_scale = found(others)
    assert float(changed) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(other_scale, scale, rtol=1e-6)


def test_only_more_certainty_than_of_a_stranger_is_an_excess():
    log_q_BAV = jnp.log(jnp.asarray([[[0.5, 0.5], [0.1, 0.9], [0.0005, 0.9995]]]))
    tokens_BA = jnp.zeros((1, 3), jnp.int32)
    ids = np.zeros((1, 3, 1), np.int32)
    given = StrangerTarget(ids, ids * 1.0, np.array([[0.25, 0.25, 0.0]], np.float32))
    found = excess(log_q_BAV, tokens_BA, given)
    np.testing.assert_allclose(found, [[np.log(2), 0, 0]], rtol=1e-5)
