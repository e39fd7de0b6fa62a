"""Every objective against PyTorch, and the loop that trains by them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
import torch
from torch.nn import functional as F

from manu_jax import parallel
from manu_jax.config import UnlearnSection
from manu_jax.data.forms import forms
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.training import objectives, trainer, unlearner
from manu_jax.training.objectives import (
    REFUSALS,
    UnlearnData,
    cross_entropy_on_answers,
    keep_cross_entropy,
)
from manu_jax.training.recipes import RECIPES
from manu_jax.training.representation import direction_key, random_direction
from manu_jax.training.unlearner import (
    num_steps_of,
    phases_of,
    recipe_of,
    reference_of,
    refused,
    unlearn,
)
from manu_jax.types import Batch, ManuError, Output

BETA, WEIGHT, VOCABULARY = 0.3, 0.7, 13
# The others of a recipe have a test of their own, of the name of their file.
LOSSES = {
    loss.__name__: loss
    for recipe in RECIPES.values()
    for loss in recipe.losses
    if loss.__module__ == objectives.__name__
}
SETTINGS = {"beta": jnp.float32(BETA)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Table:
    """A model that is its logits: one table for each of two batches, told apart by their length."""

    forget_BTV: jax.Array
    keep_BTV: jax.Array

    def __call__(self, batch, at_BA=None, **_):
        tables = {len(t[0]): t for t in (self.forget_BTV, self.keep_BTV)}
        return Output(tables[batch.token_ids_BT.shape[1]])


def batch(length, seed):
    """Three examples, the last of them padding; answers of unequal length."""
    random = np.random.default_rng(seed)
    weights_BT = np.zeros((3, length), np.float32)
    for row, answer in enumerate((2, 4, 3)):
        weights_BT[row, -answer:] = 1
    return Batch(
        token_ids_BT=random.integers(0, VOCABULARY, (3, length)).astype(np.int32),
        attention_mask_BT=np.ones((3, length), bool),
        positions_BT=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
        loss_weights_BT=weights_BT,
        example_weights_B=np.array([1, 1, 0], np.float32),
    )


def table(seed):
    random = np.random.default_rng(seed)
    shapes = ((3, 7, VOCABULARY), (3, 9, VOCABULARY))
    return Table(*(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes))


FORGET, KEEP = batch(7, 0), batch(9, 1)
MODEL, REFERENCE = table(2), table(3)


def torch_parts(model):
    """Return log-softmax tables of both batches, which require gradients."""
    leaves = [
        torch.tensor(np.asarray(logits), dtype=torch.float64, requires_grad=True)
        for logits in (model.forget_BTV, model.keep_BTV)
    ]
    return leaves, [leaf[:2].log_softmax(-1) for leaf in leaves]


def torch_ce(log_p, of):
    """Cross-entropy by PyTorch's own function, over the answers of the examples that count."""
    labels = torch.tensor(np.where(of.loss_weights_BT > 0, of.token_ids_BT, -100)[:2]).long()
    return F.nll_loss(log_p[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def torch_sums(log_p, of):
    labels = torch.tensor(of.token_ids_BT[:2, 1:]).long()
    chosen = log_p[:, :-1].gather(-1, labels[..., None])[..., 0]
    return (chosen * torch.tensor(of.loss_weights_BT[:2, 1:])).sum(-1)


def torch_losses():
    leaves, (forget, keep) = torch_parts(MODEL)
    _, (forget_ref, keep_ref) = torch_parts(REFERENCE)
    forget_ref, keep_ref = forget_ref.detach(), keep_ref.detach()
    answers = torch.tensor(KEEP.loss_weights_BT[:2, 1:] > 0)
    kl = F.kl_div(
        keep[:, :-1][answers], keep_ref[:, :-1][answers], log_target=True, reduction="batchmean"
    )
    ascent, kept = -torch_ce(forget, FORGET), WEIGHT * torch_ce(keep, KEEP)
    ratio = torch_sums(forget, FORGET) - torch_sums(forget_ref, FORGET)
    gap = torch_ce(forget, FORGET) - torch_ce(forget_ref, FORGET)
    return leaves, {
        "gradient_ascent": ascent,
        "keep_cross_entropy": kept,
        "gradient_difference": ascent + kept,
        "kl_minimisation": ascent + WEIGHT * kl,
        "keep_cross_entropy_and_kl": kept + WEIGHT * kl,
        "npo": -2 / BETA * F.logsigmoid(-BETA * ratio).mean() + kept,
        "npo_official": -2 / BETA * F.logsigmoid(BETA * gap),
        "idk": -ascent + kept,
    }


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_and_gradient_are_those_of_pytorch(name):
    data = UnlearnData(FORGET, KEEP, REFERENCE, SETTINGS, jnp.float32(WEIGHT))
    loss_of = jax.jit(jax.value_and_grad(lambda model: LOSSES[name](model, data, "none")))
    loss, gradient = loss_of(MODEL)
    leaves, losses = torch_losses()
    losses[name].backward()
    assert float(loss) == pytest.approx(losses[name].item(), rel=1e-5)
    for found, leaf in zip((gradient.forget_BTV, gradient.keep_BTV), leaves, strict=True):
        expected = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_loss_of_a_recipe_is_compared_with_pytorch():
    assert set(LOSSES) == set(torch_losses()[1])


def test_an_unknown_objective_is_an_error_that_lists_the_known_ones():
    unknown = section("idk").model_copy(update={"objective": "unlearn_all"})
    with pytest.raises(
        ManuError, match=r"unlearn \(x\)\.objective: unknown 'unlearn_all'; known: "
    ):
        recipe_of(unknown)


# Those with a loss in a file of its own.
NEW = ("simnpo", "dpo_idk", "altpo", "undial", "rmu", "wga", "satimp")
FORGOTTEN, KEPT = tiny_llava.facts(4, seed=0), tiny_llava.facts(6, seed=1)


def section(objective, **changes):
    values = {"name": "x", "objective": objective, "steps": 6, "learning_rate": 3e-3}
    return UnlearnSection(**values | {"batch_size": 4} | changes)


def trained(tmp_path, objective, **changes):
    loaded = tiny_llava.loaded()
    one = section(objective, **changes)
    reference = loaded if reference_of(one) else None
    arguments = {"directory": tmp_path / "checkpoints", "seed": 0, "reference": reference}
    return unlearn(loaded, one, forget=FORGOTTEN, keep=KEPT, **arguments)


def knowledge(loaded, facts):
    samples = [s for m in ("image", "text") for s in forms(facts, m, loaded.template)]
    return log_likelihoods(loaded, samples, batch_size=4).mean_N.mean()


# One of each kind: two losses in turn, a reference, refusals. What the others lower is shown above.
@pytest.mark.slow
@pytest.mark.parametrize("objective", ["npo", "gradient_difference_alternating", "idk"])
def test_training_moves_the_model_as_it_should(tmp_path, objective):
    before, after = tiny_llava.loaded(), trained(tmp_path, objective)
    if objective == "idk":
        assert knowledge(after, refused(FORGOTTEN)) > knowledge(before, refused(FORGOTTEN)) + 0.1
    else:
        assert knowledge(after, FORGOTTEN) < knowledge(before, FORGOTTEN) - 0.1
    gap = knowledge(after, KEPT) - knowledge(after, FORGOTTEN)
    assert gap > knowledge(before, KEPT) - knowledge(before, FORGOTTEN) or objective == "idk"


@pytest.mark.slow
@pytest.mark.parametrize("objective", NEW)
def test_training_to_forget_alone_forgets(tmp_path, objective):
    """The tiny model knows little: facts to keep, or SimNPO's own β, would outweigh the rest."""
    settings = {"beta": 0.3} if objective == "simnpo" else {}
    settings |= {"retain_weight": 0.0, "modalities": ["text"]}  # one form: one compiled step
    before = tiny_llava.loaded()
    after = trained(tmp_path, objective, **settings)
    if objective != "rmu":
        assert knowledge(after, FORGOTTEN) < knowledge(before, FORGOTTEN) - 0.1
        return
    batch = tiny_llava.batch("text", 4)
    aim_D = 2 * random_direction(direction_key(0), before.config.text.width)
    distances = [
        np.linalg.norm(
            (one.model.hidden(batch, num_layers=1) - aim_D[None, None])[batch.loss_weights_BT > 0]
        )
        for one in (before, after)
    ]
    assert distances[1] < distances[0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "gradient_difference_official", "steps": None},
        # The weight of what is kept is saved too.
        {"objective": "simnpo", "primal_dual": {"bound": 0.5}, "modalities": ["text"]},
    ],
    ids=["official", "primal-dual"],
)
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, settings):
    settings = {**settings, "checkpoint_every": 2}
    whole = trained(tmp_path / "whole", **settings)
    save, steps = trainer.save_step, []

    def save_and_die(directory, step, state):
        save(directory, step, state)
        steps.append(step)
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_step", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", **settings)
    monkeypatch.setattr(trainer, "save_step", save)
    again = trained(tmp_path / "killed", **settings)
    for one, other in zip(jax.tree.leaves(whole.model), jax.tree.leaves(again.model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_that_is_not_finite_names_the_section(tmp_path):
    with pytest.raises(ManuError, match=r"Lower unlearn \(x\)\.learning_rate"):
        trained(tmp_path, "gradient_ascent", learning_rate=1e30, modalities=["text"])


def test_refusals_take_the_place_of_answers_alone():
    for fact, refusal in zip(FORGOTTEN, refused(FORGOTTEN), strict=True):
        assert refusal.answer in REFUSALS and refusal.question == fact.question


def plan(objective, num_steps, num_forget, num_keep):
    lengths = {"num_forget": num_forget, "num_keep": num_keep}
    phases = [phases_of(RECIPES[objective], i, **lengths) for i in range(num_steps)]
    return [[(one.forget, one.keep) for one in step] for step in phases]


def test_each_order_of_losses_is_that_of_the_code_it_follows():
    assert plan("gradient_difference", 3, 2, 5) == [[(0, 0)], [(1, 1)], [(2, 2)]]
    assert plan("npo_official", 2, 2, 5) == [[(0, None)], [(1, None)]]
    # A pass over what is to be forgotten, then a pass over what is to be kept; then the next epoch.
    official = plan("gradient_difference_official", 6, 2, 3)
    assert official == [
        [(0, None)], [(1, None)], [(None, 0)], [(None, 1)], [(None, 2)], [(2, None)]
    ]  # fmt: skip
    # Every 5 // 2 = second batch to keep comes after one to forget, while there are any.
    by_turns = plan("mmunlearner", 6, 2, 5)
    keep = [[(None, i)] for i in range(6)]
    assert by_turns == [
        [(0, None), *keep[0]], keep[1], [(1, None), *keep[2]], keep[3], keep[4],
        [(2, None), *keep[5]],
    ]  # fmt: skip


def test_steps_and_epochs_give_the_length():
    def length(objective, **changes):
        values = section(objective, **{"steps": None} | changes)
        return num_steps_of(RECIPES[objective], values, num_forget=3, num_keep=7)

    assert length("gradient_difference") == 3 and length("npo", epochs=2) == 6
    assert length("gradient_difference_official", epochs=2) == 20
    assert length("mmunlearner") == 7 and length("mmunlearner", steps=4) == 4
    with pytest.raises(ManuError, match=r"unlearn \(x\)\.steps.*Give epochs"):
        length("kl_minimisation_official", steps=3)


def test_a_joint_loss_takes_both_batches_in_one_form(tmp_path, monkeypatch):
    seen = []

    def train_loop(loaded, phases_at, section, *, num_steps, **_):
        for step in range(num_steps):
            ((_, data),) = phases_at(step)
            seen.append((data.forget.images is not None, data.keep.images is not None))

    monkeypatch.setattr(unlearner, "train_loop", train_loop)
    monkeypatch.setattr(unlearner, "trained", lambda *_: None)
    trained(tmp_path, "gradient_difference")
    assert {one for pair in seen for one in pair} == {True, False}
    assert all(forget == keep for forget, keep in seen)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    def run(name, seed):
        one = section("gradient_difference", steps=2, modalities=["text"])
        made = unlearn(
            tiny_llava.loaded(),
            one,
            forget=FORGOTTEN,
            keep=KEPT,
            directory=tmp_path / name,
            seed=seed,
        )
        return [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(made.model))]

    assert run("one", 0) == run("two", 0) != run("other", 1)


def test_forms_that_no_fact_has_are_an_error(tmp_path):
    textual = [dataclasses.replace(fact, image=None) for fact in FORGOTTEN]
    with pytest.raises(ManuError, match="no facts to forget in the form image"):
        unlearn(
            tiny_llava.loaded(), section("gradient_ascent", modalities=["image"]),
            forget=textual, keep=KEPT, directory=tmp_path, seed=0,
        )  # fmt: skip


@pytest.mark.slow
def test_prompt_decouple_adds_its_weight_times_a_cross_entropy():
    extra = batch(9, 5)
    plain = UnlearnData(FORGET, KEEP, REFERENCE, SETTINGS, jnp.float32(WEIGHT))
    more = dataclasses.replace(plain, decouple=extra, decouple_weight=jnp.float32(0.5))
    added = 0.5 * float(cross_entropy_on_answers(MODEL, extra, "none"))
    for name in ("gradient_ascent", "gradient_difference", "npo", "npo_official", "idk"):
        losses = [float(LOSSES[name](MODEL, data, "none")) for data in (plain, more)]
        assert losses[1] - losses[0] == pytest.approx(added, rel=1e-4)
    keep = [float(keep_cross_entropy(MODEL, d, "none")) for d in (plain, more)]
    assert keep[0] == keep[1]


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, 0.4])
def test_primal_dual_raises_the_weight_of_what_is_kept_by_its_loss_above_the_bound(start):
    loaded = tiny_llava.loaded()
    dual = {"bound": 2.0, "rate": 0.5}
    one = section("gradient_difference", primal_dual=dual, retain_weight=start)
    state = trainer.initial_state(loaded, one, jax.random.key(0))
    settings = trainer.step_settings(one, loaded, LOSSES["gradient_difference"])
    data = UnlearnData(
        tiny_llava.batch("text", 4), tiny_llava.batch("text", 6), None, {}, jnp.float32(9)
    )
    expected = start
    loss_on = jax.jit(cross_entropy_on_answers, static_argnums=2)
    for _ in range(3):
        kept = float(loss_on(state.weights, data.keep, "none"))
        forgot = float(loss_on(state.weights, data.forget, "none"))
        state, loss = trainer.train_step(
            state, data, jnp.float32(1e-2), settings=settings, mesh=None
        )
        assert float(loss) == pytest.approx(expected * kept - forgot, rel=1e-4, abs=1e-5)
        expected = max(0.0, expected + 0.5 * (kept - 2.0))
        assert float(state.keep_weight) == pytest.approx(expected, rel=1e-5)
    assert expected > start


def test_primal_dual_needs_a_joint_loss():
    for objective in ("gradient_ascent", "gradient_difference_official"):
        with pytest.raises(ValueError, match=f"primal_dual: {objective} has no joint loss"):
            section(objective, steps=None, primal_dual={"bound": 1.0})


@pytest.mark.slow
def test_a_mesh_gives_the_weights_of_one_device(tmp_path):
    """RMU: hidden states, a drawn direction, and the distance to vanilla.

    Two devices: of eight CPU devices, XLA's collectives wait for each other now and then.
    """
    found = []
    for loaded in (tiny_llava.loaded(), tiny_llava.on_mesh(parallel.make_mesh(2, 1, 1))):
        one = section("rmu", steps=2, learning_rate=1e-3, modalities=["image"])
        trained = unlearn(
            loaded, one, forget=FORGOTTEN, keep=KEPT, directory=tmp_path / str(len(found)),
            seed=0, reference=loaded,
        )  # fmt: skip
        found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(trained.model)]))
    # Adam divides by the gradient's own size, near 0 by its rounding; see test_trainer.
    difference = np.abs(found[0] - found[1])
    assert np.quantile(difference, 0.99) < 1e-5 and difference.max() < 4e-3


def test_settings_are_those_of_the_objective():
    with pytest.raises(ValueError, match="simnpo has no coefficient, layer; it has beta, delta"):
        section("simnpo", layer=1, coefficient=2.0)
    with pytest.raises(ValueError, match="idk has no beta; it has no settings of its own"):
        section("idk", beta=0.1)
    weights = [section(name).retain_weight for name in ("npo", "undial", "satimp")]
    assert weights == [1.0, 0.0, 0.1] and section("undial", retain_weight=0.5).retain_weight == 0.5


def test_a_weight_of_0_runs_no_facts_to_keep(tmp_path, monkeypatch):
    seen = []

    def train_loop(loaded, phases_at, section, **_):
        seen.extend(data.keep for _, data in phases_at(0))

    monkeypatch.setattr(unlearner, "train_loop", train_loop)
    monkeypatch.setattr(unlearner, "trained", lambda *_: None)
    for changes in ({}, {"retain_weight": 0.5}, {"primal_dual": {"bound": 1.0}}):
        trained(tmp_path, "undial", **changes)
    assert [keep is None for keep in seen] == [True, False, False]
