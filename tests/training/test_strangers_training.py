"""Suppress and erase as trainings: their targets and rows, what they change, kills and meshes."""

import dataclasses
import functools
import tempfile

import jax
import numpy as np
import pytest
import tiny_llava
from test_unlearner import FORGOTTEN, KEPT, knowledge, section

from manu_jax import parallel
from manu_jax.config import TrainSection
from manu_jax.data.forms import forms
from manu_jax.data.strangers import strangers
from manu_jax.edits.low_rank import LowRank
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.leaves import leaves
from manu_jax.models.nn.answers import logits_at_answers
from manu_jax.training import encoded_rows, stranger_rows, strangers_target, trainer
from manu_jax.training.edited import neuron_use
from manu_jax.training.objectives import gradient_difference
from manu_jax.training.stranger_loss import like_a_stranger
from manu_jax.training.stranger_rows import StrangerRows
from manu_jax.training.strangers_target import stranger_sample, stranger_target
from manu_jax.training.streams import PlannedPhase, Streams
from manu_jax.training.trainer import train
from manu_jax.training.unlearner import check_facts, unlearn
from manu_jax.types import BatchShape, ManuError

FEW = {"steps": 4, "batch_size": 4, "batch_keep": 6, "views": 2, "strangers": 3,
       "kept_strangers": 2}  # fmt: skip
SMALL = {"suppress": {"neurons": {"count": 4}}, "erase": {"relearn": {"steps": 2}}}


def one_section(objective, **changes):
    return section(objective, **{"learning_rate": 3e-3} | FEW | SMALL[objective] | changes)


def trained(tmp_path, objective, loaded=None, **changes):
    loaded = loaded or tiny_llava.loaded()
    return unlearn(
        loaded, one_section(objective, **changes), forget=FORGOTTEN, keep=KEPT,
        directory=tmp_path / "checkpoints", seed=0, reference=loaded,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_target_is_the_mean_of_what_is_said_of_strangers(modality):
    loaded = tiny_llava.loaded()
    facts = [fact for fact in FORGOTTEN if forms([fact], modality)]
    known = strangers(facts, KEPT, 3, seed=0)
    found = stranger_target(loaded, facts, known, modality=modality)
    for number, fact in enumerate(facts):
        total = 0
        for stranger in known:
            encoded = loaded.encode(stranger_sample(loaded, fact, stranger, modality=modality))
            batch = loaded.collate([encoded], BatchShape())
            logits_BAV, targets = logits_at_answers(loaded.model, batch, remat="none")
            total += np.asarray(jax.nn.softmax(logits_BAV[0])) / 3
        tokens = np.asarray(targets.token_ids_BT[0])
        for place in np.flatnonzero(np.asarray(targets.weights_BT[0])):
            p_V = np.zeros(total.shape[-1])
            np.add.at(p_V, found.ids_BAK[number, place], found.p_BAK[number, place])
            np.testing.assert_allclose(p_V, total[place], atol=2e-6)
            true = found.true_BA[number, place]
            assert true == pytest.approx(total[place, tokens[place]], abs=2e-6)


def test_each_fact_may_have_strangers_of_its_own():
    loaded = tiny_llava.loaded()
    facts = [fact for fact in FORGOTTEN if forms([fact], "text")]
    known = strangers(facts, KEPT, 3, seed=0)
    one_by_one = [stranger_target(loaded, facts, [one], modality="text") for one in known]
    found = stranger_target(loaded, facts, known, modality="text", each=1, seed=0)
    chosen = {
        next(
            n
            for n, one in enumerate(one_by_one)
            if np.isclose(one.true_BA[i, 0], true_A[0], atol=1e-6)
        )
        for i, true_A in enumerate(found.true_BA)
    }
    assert len(chosen) > 1


def test_a_fact_that_no_stranger_can_stand_for_is_named(monkeypatch, caplog):
    monkeypatch.setattr(strangers_target, "has_same_answer", lambda *_: False)
    known = strangers(FORGOTTEN, KEPT, 2, seed=0)
    facts = [fact for fact in FORGOTTEN if forms([fact], "text")][:1]
    stranger_target(tiny_llava.loaded(), facts, known, modality="text")
    assert (
        f"other tokens beside every stranger; for these no answer is aimed at: {facts[0].key}"
        in caplog.text
    )


def test_the_true_token_is_that_of_a_stranger_who_counts(monkeypatch):
    """Beside the first stranger the answer may have other tokens."""
    loaded = tiny_llava.loaded()
    fact = next(fact for fact in FORGOTTEN if forms([fact], "text"))
    other = dataclasses.replace(fact, answer=fact.answer[::-1])
    known = strangers([fact], KEPT, 2, seed=0)

    def sample(loaded, given, stranger, *, modality):
        said = other if stranger is known[0] else given
        return stranger_sample(loaded, said, stranger, modality=modality)

    monkeypatch.setattr(strangers_target, "stranger_sample", sample)
    found = stranger_target(loaded, [fact], known, modality="text")
    expected = stranger_target(loaded, [fact], known[1:], modality="text")
    own_BA = found.true_BA[:, : expected.true_BA.shape[1]]  # the other answer is longer
    np.testing.assert_allclose(own_BA, expected.true_BA, rtol=1e-5)


def rows(objective="erase", *, forget=FORGOTTEN, **changes):
    given = one_section(objective, **changes)
    known, kept = (strangers(FORGOTTEN, KEPT, 3, seed=0, near=near) for near in (False, True))
    return StrangerRows(
        tiny_llava.loaded(), given, forget=forget, keep=KEPT, known=known, kept=kept, seed=0
    )


def test_the_rows_of_a_step_are_its_own_and_no_others():
    one, other = rows(), rows()
    other.data_at(0)  # what came before changes nothing
    for first, second in zip(
        jax.tree.leaves(one.data_at(3)), jax.tree.leaves(other.data_at(3)), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    steps = [int(one.data_at(step).relearn_steps) for step in range(12)]
    assert set(steps) == {1, 2}


def test_a_stranger_stands_beside_each_fact_in_the_same_columns():
    """The names have other lengths; from the name or the image on, columns mean the same."""
    data = rows().data_at(1)
    for modality, of_form in data.forms.items():
        given = of_form.forget
        assert given.strangers is not None and given.differs_BT is not None
        own, theirs = np.asarray(given.batch.token_ids_BT), np.asarray(given.strangers.token_ids_BT)
        np.testing.assert_array_equal(given.batch.loss_weights_BT, given.strangers.loss_weights_BT)
        for row, marked in enumerate(np.asarray(given.differs_BT) > 0):
            same = own[row] == theirs[row]
            start = int(np.argmax(marked))
            assert marked[start:].all() and not marked[:start].any()
            if modality == "text":
                assert not same[start:].all() and same[-4:].all()
            else:
                assert own[row, start] == tiny_llava.loaded().config.image_token


def test_what_is_asked_after_relearning_was_not_relearned():
    relearn = {"steps": 2, "form_share": 0, "people_share": 1}
    data = rows(batch_size=8, relearn=relearn).data_at(0)
    for of_form in data.forms.values():
        assert of_form.relearned is not None and of_form.asked is not None
        relearned, asked = (
            {ids.tobytes() for ids in np.asarray(batch.token_ids_BT)}
            for batch in (of_form.relearned, of_form.asked.batch)
        )
        assert relearned and asked and relearned.isdisjoint(asked)


def test_a_fact_in_other_words_is_relearned_with_it_or_asked_with_it(monkeypatch):
    """A benchmark may have several facts about the same, which it tells apart by numbers."""
    facts = [
        dataclasses.replace(fact, attribute=f"{name}{number}", answer=f"{fact.answer} {name}")
        for fact in FORGOTTEN
        for name in ("home", "job")
        for number in ("", "-2")
    ]
    found, real = [], stranger_rows._Form._split

    def split(of_form, lesson):
        facts, parts = of_form._facts, real(of_form, lesson)
        found.append([{(facts[i].person_id, facts[i].answer) for i in part} for part in parts])
        return parts

    monkeypatch.setattr(stranger_rows._Form, "_split", split)
    relearn = {"steps": 2, "form_share": 0, "people_share": 0}
    made = rows(forget=facts, relearn=relearn, views=1)
    for step in range(6):
        made.data_at(step)
    assert len(found) == 12 and all(inside and asked for inside, asked in found)
    assert all(inside.isdisjoint(asked) for inside, asked in found)


@pytest.mark.slow
def test_one_form_is_relearned_and_the_other_asked():
    data = rows(relearn={"steps": 2, "form_share": 1.0})
    taught = set()
    for step in range(8):
        counts = {
            modality: (
                np.asarray(of_form.relearned.example_weights_B).sum(),
                np.asarray(of_form.asked.batch.example_weights_B).sum(),
            )
            for modality, of_form in data.data_at(step).forms.items()
        }
        (one,) = [modality for modality, (relearned, _) in counts.items() if relearned]
        (other,) = [modality for modality, (_, asked) in counts.items() if asked]
        assert one != other
        taught.add(one)
    assert taught == {"image", "text"}
    loss = like_a_stranger(tiny_llava.loaded().model, data.data_at(0), "none")
    assert np.isfinite(loss)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [True, False])
def test_layers_below_the_written_ones_run_once(tmp_path, monkeypatch, stored):
    """A layer below what training changes gives the same every time: the edit is the same."""
    if not stored:
        monkeypatch.setattr(encoded_rows, "STORE_BYTES", 0)
    last = {"neurons": {"count": 4, "layers": [1]}, "steps": 2, "learning_rate": 1e-3}
    data = rows("suppress", **last).data_at(0)
    assert data.first_layer == 1
    assert all(of_form.keep.entering_BTD is not None for of_form in data.forms.values())
    found = trained(tmp_path / "once", "suppress", **last)
    monkeypatch.setattr(stranger_rows, "lowest_layer", lambda *_: 0)
    every_time = trained(tmp_path / "every", "suppress", **last)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(every_time), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "given", "told"),
    [
        ({"kept_strangers": 999}, {}, r"\(x\).kept_strangers: 999 strangers are asked for"),
        ({"strangers": 999}, {}, r"\(x\).strangers: 999 strangers are asked for"),
        ({}, {"forget": []}, "no facts to forget in the form image, to forget in the form text"),
        ({}, {"keep": []}, "no facts to keep in the form image, to keep in the form text"),
    ],
)
def test_too_few_facts_or_names_are_told_with_their_place(changes, given, told):
    facts = {"forget": FORGOTTEN, "keep": KEPT} | given
    with pytest.raises(ManuError, match=told):
        check_facts(one_section("suppress", **changes), **facts, seed=0)


@pytest.mark.slow
def test_suppress_writes_neurons_and_leaves_all_else(tmp_path):
    vanilla = tiny_llava.loaded()
    edit = trained(tmp_path, "suppress")
    assert isinstance(edit, WrittenNeurons) and edit.layers == (0, 1)
    use_LF = neuron_use(vanilla, KEPT, seed=0)
    assert edit.places is not None
    for layer, places in enumerate(edit.places):
        assert set(places) == set(np.argsort(use_LF[layer])[:4].tolist())
    edited = edit.apply(vanilla)
    before, after = leaves(vanilla.model), leaves(edited.model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"text.layers.mlp.{n}" for n in ("gate_LDF", "up_LDF", "down_LFD")}
    for one, other in zip(
        jax.tree.leaves(edit.undo(edited, vanilla).model), before.values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_neurons_can_be_added_in_place_of_written_over(tmp_path):
    edit = trained(tmp_path, "suppress", neurons={"count": 3, "places": "appended"}, steps=2)
    assert isinstance(edit, WrittenNeurons)
    wider = edit.apply(tiny_llava.loaded())
    assert wider.towers["text"] == (2, 43)
    assert edit.scaled(0.0).apply(tiny_llava.loaded()).towers["text"] == (2, 43)


@functools.cache
def knowing():
    """Return the tiny model after it has learned all facts, in both forms."""
    loaded = tiny_llava.loaded()
    facts = (*FORGOTTEN, *KEPT)
    samples = [s for m in ("image", "text") for s in forms(facts, m, loaded.template)]
    learning = TrainSection(steps=150, batch_size=10, learning_rate=1e-2)
    with tempfile.TemporaryDirectory() as folder:
        return train(loaded, samples, learning, num_steps=150, directory=folder, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["suppress", "erase"])
def test_what_was_known_is_forgotten_and_the_rest_is_kept(tmp_path, objective):
    loaded = knowing()
    assert knowledge(loaded, FORGOTTEN) > -0.5 and knowledge(loaded, KEPT) > -0.5
    more = {"neurons": {"count": 16}} if objective == "suppress" else {}
    edit = trained(
        tmp_path,
        objective,
        loaded,
        steps=80,
        learning_rate=1e-2,
        kept_strangers=0,
        retain_weight=1.0,
        **more,
    )
    after = edit.apply(loaded)
    assert knowledge(after, FORGOTTEN) < -1.5
    assert knowledge(after, KEPT) > knowledge(after, FORGOTTEN) + 0.7
    if objective == "suppress":  # and it hides: the knowledge is still in the weights
        assert knowledge(edit.scaled(0.0).apply(loaded), FORGOTTEN) > -0.8


@pytest.mark.slow
def test_a_low_rank_edit_is_the_second_form_of_suppress(tmp_path):
    vanilla = tiny_llava.loaded()
    lora = {"rank": 2, "alpha": 2.0, "dropout": 0.0, "targets": ["text.layers.mlp.down"]}
    edit = unlearn(
        vanilla, section("suppress", **FEW | {"trains": "low_rank", "lora": lora}),
        forget=FORGOTTEN, keep=KEPT, directory=tmp_path, seed=0, reference=vanilla,
    )  # fmt: skip
    assert isinstance(edit, LowRank)
    before, after = leaves(vanilla.model), leaves(edit.apply(vanilla).model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"text.layers.mlp.down_LFD"}
    with pytest.raises(ValueError, match="trains: low_rank needs lora"):
        section("suppress", trains="low_rank")
    with pytest.raises(ValueError, match="lora: with trains: mlp no adapters are trained"):
        section("erase", lora=lora)


@pytest.mark.slow
@pytest.mark.parametrize("trains", ["mlp", "all_mlps"])
def test_erase_changes_the_mlps_that_it_trains_alone(tmp_path, trains):
    vanilla, edit = tiny_llava.loaded(), trained(tmp_path, "erase", trains=trains)
    assert isinstance(edit, NewWeights)
    before, after = leaves(vanilla.model), leaves(edit.apply(vanilla).model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    expected = {f"text.layers.mlp.{n}" for n in ("gate_LDF", "up_LDF", "down_LFD")}
    if trains == "all_mlps":
        expected |= {name for name in before if name.startswith("vision.layers.mlp.")}
        assert len(expected) == 3 + 4  # two matrices with biases
    assert changed == expected


@pytest.mark.parametrize(
    ("settings", "are_patches"),
    [
        ({"trains": "mlp"}, False),
        ({"trains": "all_mlps"}, True),
        ({"trains": "all"}, True),
        ({"trains": "all", "lora": {"targets": ["text.layers.mlp.down"]}}, False),
        ({"trains": "low_rank", "lora": {"targets": ["vision.layers"]}}, True),
    ],
)
def test_images_are_encoded_once_unless_the_tower_is_trained(settings, are_patches):
    images = rows(**settings).data_at(0).forms["image"].forget.batch.images
    assert (images.patches_BIPC is not None) is are_patches
    assert (images.features_BIPE is None) is are_patches


@pytest.mark.slow
def test_another_objective_may_take_the_target_and_the_data(tmp_path):
    loaded = tiny_llava.loaded()
    given = section(
        "gradient_difference", target="strangers", strangers=3, views=2, keep_views=2,
        trains="mlp", steps=6,
    )  # fmt: skip
    edit = unlearn(
        loaded, given, forget=FORGOTTEN, keep=KEPT, directory=tmp_path, seed=0, reference=None
    )
    assert isinstance(edit, NewWeights)
    assert abs(knowledge(edit.apply(loaded), KEPT) - knowledge(loaded, KEPT)) < 5
    with pytest.raises(ValueError, match="target: npo has an aim of its own"):
        section("npo", target="strangers")


def test_every_view_has_the_target_of_its_own_fact():
    """A question for the name has no text form, in other words neither; its answer is the longest.

    So the image form has more answer tokens than batches of the text form have room for.
    """
    loaded = tiny_llava.loaded()
    asked = dataclasses.replace(
        FORGOTTEN[0], question="What is the name of this person?", answer="a b c d e f g h i j k l"
    )
    forget = [asked, *FORGOTTEN]
    known = strangers(forget, KEPT, 2, seed=0)
    given = section("gradient_difference", target="strangers", strangers=2, views=3, batch_size=2)
    streams = Streams(
        loaded, given, forget=forget, keep=KEPT, preferred=(), decouple=(), strangers=known, seed=0
    )
    with_text = [fact for fact in forget if forms([fact], "text")]
    assert len(with_text) == len(forget) - 1
    facts = {"image": forget, "text": with_text}
    whole = {m: stranger_target(loaded, facts[m], known, modality=m) for m in facts}
    expected = np.concatenate([np.tile(whole[m].true_BA[:, 0], 3) for m in facts])
    # The rows of the stream are the views of image facts, then those of text facts.
    assert len(streams.target_rows) == len(expected)
    assert len(streams.forget) * given.batch_size >= len(expected)
    seen = np.full(len(expected), np.nan)
    for number in range(len(streams.forget)):
        indices = streams.forget.indices_at(number)
        data = streams.data_of(PlannedPhase(gradient_difference, number, None), number)
        seen[indices] = np.asarray(data["target"].true_BA)[: len(indices), 0]
    np.testing.assert_allclose(seen, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["suppress", "erase"])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, objective):
    settings = {"checkpoint_every": 1, "steps": 3}
    whole = trained(tmp_path / "whole", objective, **settings)
    save = trainer.save_step

    def save_and_die(directory, step, state):
        save(directory, step, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_step", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", objective, **settings)
    monkeypatch.setattr(trainer, "save_step", save)
    again = trained(tmp_path / "killed", objective, **settings)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("suppress", marks=pytest.mark.slow),
        pytest.param("erase", marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_the_edit_of_one_device(tmp_path, objective):
    """Two devices: of eight CPU devices, XLA's collectives wait for each other now and then."""
    found = []
    for loaded in (tiny_llava.loaded(), tiny_llava.on_mesh(parallel.make_mesh(2, 1, 1))):
        edit = trained(tmp_path / str(len(found)), objective, loaded, steps=2, learning_rate=1e-3)
        found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(edit)]))
    # Adam divides by the gradient's own size, near 0 by its rounding; see test_trainer.
    difference = np.abs(found[0] - found[1])
    assert np.quantile(difference, 0.99) < 1e-5 and difference.max() < 4e-3


def test_settings_of_the_config_take_the_place_of_the_recipes():
    erase, other = section("erase"), section("erase", views=1, relearn=None, steps=5)
    assert (erase.trains, erase.views, erase.retain_weight) == ("mlp", 3, 5.0)
    assert erase.relearn is not None and erase.setting("excess") == 1.0
    assert (other.views, other.relearn, other.steps) == (1, None, 5)
    suppress = section("suppress")
    assert suppress.neurons is not None and suppress.neurons.count == 32
    with pytest.raises(ValueError, match="relearn: npo does not relearn"):
        section("npo", relearn={})
    with pytest.raises(ValueError, match="neurons: trains: neurons needs it"):
        section("npo", trains="neurons")
    with pytest.raises(ValueError, match="rates: the least and the largest"):
        section("erase", relearn={"rates": (1e-2, 1e-3)})
    again = type(erase).model_validate(erase.model_dump())
    assert again == erase
