import dataclasses
import json

import audit_world as world
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.config import LoraSection
from manu_jax.evaluation import generate, likelihood
from manu_jax.evaluation.audit import attacker as attacking
from manu_jax.evaluation.audit import relearning, tuning
from manu_jax.evaluation.audit.attacker import Attacker, Curve, Lesson, attack_step
from manu_jax.leaves import leaves
from manu_jax.training import lora
from manu_jax.training.objectives import cross_entropy_on_answers
from manu_jax.types import MODALITIES, RETRAINED, ManuError

VARIANTS = ("attributes", "mixed", "people", "image to text", "text to image")
BENCHMARK = world.benchmark()
LORA = LoraSection(rank=4, dropout=0, targets=("text.layers.mlp.up", "text.layers.mlp.down"))


def curve(*right, **fields):
    """Return a curve of answers as texts of 0 and 1, the first before the attack."""
    defaults = {"losses": (), "learned": (), "diverged": None}
    steps = (0, *relearning.steps_until(2 ** (len(right) - 2)))
    rows = tuple(tuple(mark == "1" for mark in row) for row in right)
    return Curve(steps=steps, right=rows, **{**defaults, **fields})


def lessons_of(**settings):
    run = world.run(None, of=BENCHMARK, **settings)
    attacked = world.attacked(run, tiny_llava.loaded())
    return {one.name: one for one in relearning.lessons_of(attacked, Attacker(attacked).kept)}


def attacked(directory, *, loaded=None, name="model", retrained=None, **settings):
    run = world.run(directory, of=BENCHMARK, **settings)
    return world.attacked(run, loaded or tiny_llava.loaded(), name=name, retrained=retrained)


def bits(model):
    return {name: np.asarray(leaf).tobytes() for name, leaf in leaves(model).items()}


def counted(monkeypatch, *, most=10**6):
    """Count the steps of attacks, and kill the process when there have been so many."""
    real, done = attacking.attack_step, []

    def step(*arguments, **named):
        if len(done) == most:
            raise KeyboardInterrupt
        done.append(named["rate"])
        return real(*arguments, **named)

    monkeypatch.setattr(attacking, "attack_step", step)
    return done


# Arithmetic


def test_steps_double_up_to_the_last():
    assert relearning.steps_until(64) == (1, 2, 4, 8, 16, 32, 64)
    assert relearning.steps_until(20) == (1, 2, 4, 8, 16, 20)
    assert relearning.steps_until(1) == (1,)


def test_area_is_the_mean_over_the_steps_without_what_was_answered_before():
    assert curve("11", "00", "10", "11").area.tolist() == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("gain", "floor", "expected"),
    [(0.4, 0.1, 0.25), (0.1, 0.1, 1), (0.1, 0.3, 1), (0.3, -0.1, 0), (0, 0.2, 1), (-0.2, -0.3, 1)],
)
def test_regained_is_the_floors_gain_over_the_models(gain, floor, expected):
    assert relearning.regained(gain, floor) == pytest.approx(expected)


def test_strongest_rate_has_the_largest_area_of_this_form_and_variant():
    curves = {
        ("people", 1e-3): curve("0000", "1100", "1100"),
        ("people", 1e-2): curve("0000", "0010", "0111"),
        ("other", 1.0): curve("1111", "1111", "1111"),
    }
    assert relearning.strongest(curves, "people", np.array([True, True, False, False])) == 1e-3
    assert relearning.strongest(curves, "people", np.array([False, False, True, True])) == 1e-2
    equal = {("people", rate): curve("00", "10", "10") for rate in (3.0, 1.0, 2.0)}
    assert relearning.strongest(equal, "people", np.array([True, True])) == 1.0


def test_summary_compares_the_strongest_rates_of_the_model_and_of_the_floor(tmp_path):
    lesson = lessons_of()["people"]
    n = len(lesson.asked)
    nothing, everything = "0" * n, "1" * n
    half = "".join("01"[asked.attribute in ("home", "job")] for asked in lesson.asked)
    # What a rate that is too high brings back at first counts as well.
    curves = {("people", 0.1): curve(nothing, everything, nothing)}
    curves["people", 0.2] = curve(nothing, nothing, half)
    floors = {("people", 0.1): curve(nothing, nothing, nothing)}
    floors["people", 0.2] = curve(nothing, half, half)
    model = attacked(tmp_path)
    rows = list(relearning.summary_rows(model, lesson, curves=curves, floors=floors))
    found = {(row.modality, row.metric): row for row in rows}
    for modality in MODALITIES:
        assert found[modality, "area"].value == pytest.approx(0.5)
        assert found[modality, "area"].n == n // 2
        assert found[modality, "rate"].value == 0.1
        assert found[modality, "regained"].value == pytest.approx(0.5)
    metrics = {
        row.metric for row in relearning.summary_rows(model, lesson, curves=curves, floors=None)
    }
    assert metrics == {"area", "rate"}


# What is trained and asked


def test_halves_share_neither_attributes_nor_people():
    lessons = lessons_of()
    assert tuple(lessons) == VARIANTS
    trained, asked = (
        {
            name: {key(one) for one in part(lesson)}
            for name, key in (
                ("attribute", lambda one: one.attribute),
                ("person", lambda one: one.key.partition("/")[0]),
            )
        }
        for part, lesson in (
            (lambda lesson: lesson.taught["image"], lessons["attributes"]),
            (lambda lesson: lesson.asked, lessons["attributes"]),
        )
    )
    assert len(trained["attribute"]) == 3 and "name" in trained["attribute"]
    assert trained["attribute"] | asked["attribute"] == {*world.QUESTIONS, "name"}
    assert not trained["attribute"] & asked["attribute"]
    assert len(asked["person"]) == world.NUM_FORGET
    people = {fact.person_id for fact in lessons["people"].taught["text"]}
    assert len(people) == 2
    assert {one.person.id for one in lessons["people"].asked} == {
        person.id for person in BENCHMARK.sets["forget"] if person.id not in people
    }


def test_other_form_is_asked_about_all_facts_that_one_form_taught():
    lesson = lessons_of()["image to text"]
    assert set(lesson.taught) == {"image"}
    assert len(lesson.taught["image"]) == len(BENCHMARK.facts("forget"))
    assert {one.modality for one in lesson.asked} == {"text"}
    assert len(lesson.asked) == world.NUM_FORGET * len(world.QUESTIONS)
    assert {one.modality for one in lesson.checked} == {"image"}


def test_seed_decides_the_halves():
    halves = set()
    for seed in range(8):
        first, again = (
            tuple(sorted({one.key for one in lessons_of(seed=seed)["attributes"].asked}))
            for _ in range(2)
        )
        assert first == again
        halves.add(first)
    assert len(halves) > 2


def test_question_whose_answer_is_trained_under_another_name_is_not_asked():
    """A benchmark may have several facts about the same, which it tells apart by numbers."""
    person = BENCHMARK.sets["forget"][0]
    lesson = lessons_of()["attributes"]
    asked = next(one for one in lesson.asked if one.person is person)
    fact = next(fact for fact in person.facts if fact.key == asked.key)
    for changes in ({"attribute": f"{fact.attribute}-2", "answer": "?"}, {"attribute": "other"}):
        told = dataclasses.replace(fact, **changes)
        assert relearning._is_told(asked, [told])
        assert not relearning._is_told(asked, [dataclasses.replace(told, person_id="other")])


def test_half_of_a_mixed_batch_is_kept_facts_and_a_short_one_is_filled_with_weight_0():
    model = attacked(None)
    attacker = Attacker(model)
    lessons = {one.name: one for one in relearning.lessons_of(model, attacker.kept)}
    seen = []
    attacker._batch = lambda facts, modality: seen.append(facts) or np.zeros(1)
    next(attacker.batches(lessons["mixed"]))
    forget = {person.id for person in BENCHMARK.sets["forget"]}
    assert [sum(fact.person_id in forget for fact in facts) for facts in seen] == [8, 8]
    assert [len(facts) for facts in seen] == [16, 16]
    image, text = next(Attacker(model).batches(lessons["people"]))
    assert float(image.example_weights_B.sum()) == 10 and image.token_ids_BT.shape[0] == 16
    assert float(text.example_weights_B.sum()) == 8


# The attack itself


def test_only_the_text_decoder_is_trained_and_the_given_model_stays(tmp_path):
    model = attacked(tmp_path)
    before = bits(model.loaded.model)
    attacker = Attacker(model)
    lesson = relearning.lessons_of(model, attacker.kept)[0]
    state = attacking.first_state(model.loaded.model, None)
    step = attack_step(
        state,
        model.loaded.model,
        next(attacker.batches(lesson)),
        rate=jnp.float32(1e-2),
        remat="none",
        mesh=None,
    )
    after = bits(attacking.with_weights(model.loaded.model, step[0][0]))
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if name.startswith("text.")
    }
    assert bits(model.loaded.model) == before


def test_one_step_is_adams_on_the_sum_over_both_forms():
    model = attacked(None)
    attacker = Attacker(model)
    batches = next(attacker.batches(relearning.lessons_of(model, attacker.kept)[0]))
    loaded, name = model.loaded, "text.layers.mlp.down_LFD"
    weight = leaves(loaded.model)[name]

    def loss_of(weight):
        changed = attacking.with_weights(loaded.model, {name: weight})
        return sum(cross_entropy_on_answers(changed, batch, "none") for batch in batches)

    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(weight)
    state = attacking.first_state(loaded.model, None)
    (weights, _), found = attack_step(
        state, loaded.model, batches, rate=jnp.float32(1e-2), remat="none", mesh=None
    )
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    adam = optax.adam(1e-2)
    change, _ = adam.update(gradient, adam.init(weight))
    # Where a gradient is near Adam's ε, rounding shows in the step: a thousandth of the rate.
    np.testing.assert_allclose(weights[name], weight + change, atol=1e-5)


@pytest.mark.slow
def test_adapters_are_trained_in_place_of_the_weights_and_merged_into_a_copy():
    model = attacked(None, lora=LORA)
    attacker, loaded = Attacker(model), model.loaded
    before = bits(loaded.model)
    batches = next(attacker.batches(relearning.lessons_of(model, attacker.kept)[0]))
    key = jax.random.key(3)
    adapters, _ = attacking.first_state(loaded.model, None, lora=LORA, key=key)
    assert set(adapters) == {"text.layers.mlp.down", "text.layers.mlp.up"}
    assert bits(attacking.with_trained(loaded.model, adapters, LORA)) == before

    def loss_of(adapters):
        changed = lora.adapted(loaded.model, adapters, LORA)
        return sum(cross_entropy_on_answers(changed, batch, "none") for batch in batches)

    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(adapters)
    adam = optax.adam(1e-2)
    change, _ = adam.update(gradient, adam.init(adapters))
    expected = jax.tree.map(jnp.add, adapters, change)
    state = attacking.first_state(loaded.model, None, lora=LORA, key=key)
    settings = {"rate": jnp.float32(1e-2), "remat": "none", "mesh": None, "lora": LORA}
    (found, _), found_loss = attack_step(state, loaded.model, batches, **settings)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    after = bits(attacking.with_trained(loaded.model, found, LORA))
    assert {name for name in before if before[name] != after[name]} == {
        "text.layers.mlp.down_LFD",
        "text.layers.mlp.up_LDF",
    }
    assert bits(loaded.model) == before


@pytest.mark.slow
def test_an_attack_with_adapters_learns_and_is_told_from_one_of_all_weights(tmp_path):
    model = attacked(tmp_path, rates=(3e-2,), steps=8, lora=LORA)
    list(tuning.measure(model))
    content = json.loads((tmp_path / "audit/model/tuning.json").read_text())
    assert content["made_from"]["lora"] == LORA.model_dump(mode="json")
    losses = content["curves"][0]["losses"]
    assert losses[-1] < losses[0]
    with pytest.raises(ManuError, match=r"tuning.json: made from .* Delete the file"):
        list(tuning.measure(attacked(tmp_path, rates=(3e-2,), steps=8)))


@pytest.mark.slow
def test_all_variants_and_rates_share_one_compiled_step_for_each_choice_of_forms(tmp_path):
    model = attacked(tmp_path, rates=(1e-3, 1e-2), steps=1)
    list(relearning.measure(dataclasses.replace(model, retrained=None)))
    size = attack_step._cache_size()
    other = jax.tree.map(lambda leaf: leaf * 1.1, model.loaded.model)
    model = attacked(tmp_path / "again", loaded=model.loaded.replace_model(other), steps=1)
    list(relearning.measure(model))
    list(tuning.measure(model))
    assert attack_step._cache_size() == size


@pytest.mark.slow
def test_every_variant_has_its_rows_and_trained_facts_are_learned(tmp_path):
    rows = list(relearning.measure(attacked(tmp_path, rates=(1e-3, 1e-2), steps=4)))
    assert {row.variant for row in rows} == set(VARIANTS)
    answered = [row for row in rows if row.metric == "answered"]
    places = [(row.variant, row.modality, row.rate, row.step) for row in answered]
    assert len(set(places)) == len(places) == (3 * 2 + 2) * 2 * 4
    assert {row.step for row in answered} == {0, 1, 2, 4}
    assert all(0 <= row.value <= 1 and row.low is not None for row in answered)
    assert {row.metric for row in rows} == {"answered", "trained", "area", "rate"}


@pytest.mark.slow
def test_rate_that_is_too_high_is_recorded_and_not_an_error(tmp_path):
    rows = list(relearning.measure(attacked(tmp_path, rates=(1e-3, 1e30), steps=4)))
    diverged = [row for row in rows if row.metric == "diverged"]
    assert {row.rate for row in diverged} == {1e30}
    assert {row.variant for row in diverged} == set(VARIANTS)
    assert all(1 <= row.value <= 4 for row in diverged)
    later = [row for row in rows if (row.metric, row.rate, row.step) == ("answered", 1e30, 4)]
    assert later and all(row.value == 0 for row in later)
    assert {row.value for row in rows if row.metric == "rate"} <= {1e-3, 1e30}
    json.loads((tmp_path / "audit/model/relearning.json").read_text())


@pytest.mark.slow
def test_killed_audit_goes_on_after_its_last_curve_to_the_same_rows(tmp_path, monkeypatch):
    straight = list(relearning.measure(attacked(tmp_path / "straight", rates=(1e-3, 1e-2))))
    resumed = attacked(tmp_path / "killed", rates=(1e-3, 1e-2))
    with monkeypatch.context() as patch:
        counted(patch, most=4 * 3 + 2)
        with pytest.raises(KeyboardInterrupt):
            list(relearning.measure(resumed))
    with monkeypatch.context() as patch:
        done = counted(patch)
        assert list(relearning.measure(resumed)) == straight
    assert len(done) == 4 * (len(VARIANTS) * 2 - 3)


@pytest.mark.slow
def test_floor_is_made_once_for_all_methods(tmp_path, monkeypatch):
    done = counted(monkeypatch)
    never = tiny_llava.loaded()
    other = never.replace_model(jax.tree.map(lambda leaf: leaf * 1.1, never.model))
    for name in ("one", "two"):
        rows = list(
            relearning.measure(attacked(tmp_path, loaded=other, name=name, retrained=never))
        )
        assert {row.metric for row in rows if row.metric == "regained"}
        assert {row.model for row in rows} == {name}
    assert len(done) == 4 * len(VARIANTS) * 3
    floor = attacked(tmp_path, loaded=never, name=RETRAINED, retrained=never)
    assert not [row for row in relearning.measure(floor) if row.metric == "regained"]
    assert len(done) == 4 * len(VARIANTS) * 3


def test_file_that_is_damaged_or_of_another_model_is_an_error(tmp_path):
    model = attacked(tmp_path, steps=1)
    list(tuning.measure(model))
    path = tmp_path / "audit/model/tuning.json"
    other = jax.tree.map(lambda leaf: leaf * 2, model.loaded.model)
    for changed in (
        dataclasses.replace(model, loaded=model.loaded.replace_model(other)),
        attacked(tmp_path, steps=2),
        attacked(tmp_path, steps=1, seed=5),
    ):
        with pytest.raises(ManuError, match=r"tuning.json: made from .* Delete the file"):
            list(tuning.measure(changed))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ManuError, match=r"tuning.json: damaged .* Delete the file"):
        list(tuning.measure(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "adapters"), [((8, 1, 1), None), ((2, 2, 2), None), ((2, 2, 2), LORA)]
)
def test_an_attack_on_a_mesh_is_the_one_on_a_single_device(sizes, adapters):
    found = []
    for mesh in (None, parallel.make_mesh(*sizes)):
        loaded = tiny_llava.loaded() if mesh is None else tiny_llava.on_mesh(mesh)
        model = attacked(None, loaded=loaded, lora=adapters)
        attacker = Attacker(model)
        lesson = relearning.lessons_of(model, attacker.kept)[2]  # short batches
        given = {"lora": adapters, "key": jax.random.key(0)}
        state, losses = attacking.first_state(loaded.model, mesh, **given), []
        batches = attacker.batches(lesson)
        with parallel.on_mesh(mesh):
            for _ in range(3):
                state, loss = attack_step(
                    state,
                    loaded.model,
                    next(batches),
                    rate=jnp.float32(1e-3),
                    remat="none",
                    mesh=mesh,
                    **given,
                )
                losses.append(float(loss))
        if mesh is not None:
            table = leaves(parallel.tree_shardings(state[0], mesh))
            for name, leaf in leaves(state[0]).items():
                assert leaf.sharding.is_equivalent_to(table[name], leaf.ndim), name
        found.append((losses, attacker.curve(lesson, rate=1e-3, steps=(1, 2))))
    (losses, one), (meshed, other) = found
    # Sums over devices in another order; Adam's steps are of equal size where gradients are small.
    np.testing.assert_allclose(losses, meshed, rtol=1e-3)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-3)
    assert one.right == other.right


# Benign tuning


def test_benign_tuning_trains_no_fact_to_forget_and_asks_only_about_those(tmp_path, monkeypatch):
    seen = []
    real = Attacker._batch
    monkeypatch.setattr(
        Attacker,
        "_batch",
        lambda self, facts, modality: seen.extend(facts) or real(self, facts, modality),
    )
    rates = counted(monkeypatch)
    model = attacked(tmp_path, rates=(1e-2, 1e-4, 1e-3), steps=4)
    rows = list(tuning.measure(model))
    retain = {person.id for person in BENCHMARK.sets["retain"]}
    assert {fact.person_id for fact in seen} == retain
    assert {float(rate) for rate in rates} == {np.float32(1e-3)}
    assert {(row.step, row.modality) for row in rows} == {
        (step, modality) for step in (0, 1, 4) for modality in MODALITIES
    }
    assert {row.n for row in rows} == {world.NUM_FORGET * len(world.QUESTIONS)}


def test_trained_copy_is_asked_by_the_programs_that_asked_the_model(tmp_path):
    model = attacked(tmp_path, steps=1)
    model.answered(model.loaded, model.questions)
    count = generate._answers._cache_size(), likelihood._likelihoods._cache_size()
    list(tuning.measure(model))
    assert (generate._answers._cache_size(), likelihood._likelihoods._cache_size()) == count


def test_benign_tuning_of_one_step_is_asked_about_once(tmp_path):
    rows = list(tuning.measure(attacked(tmp_path, steps=1)))
    assert [(row.step, row.modality) for row in rows] == [
        (step, modality) for step in (0, 1) for modality in MODALITIES
    ]


def test_benign_tuning_has_no_rows_where_there_is_nothing_to_keep(tmp_path):
    benchmark = dataclasses.replace(BENCHMARK, sets={**BENCHMARK.sets, "retain": ()})
    run = world.run(tmp_path, of=benchmark)
    assert not list(tuning.measure(world.attacked(run, tiny_llava.loaded())))


# Hidden, and never known


def silenced(loaded, run, num_neurons, *, num_steps=60):
    """Return the model with a few neurons of its last layer written to give wrong answers.

    They are trained on the facts to forget with each other's answers; all else stays.
    """
    facts = run.benchmark.facts("forget")
    by_attribute = {}
    for fact in facts:
        by_attribute.setdefault(fact.attribute, []).append(fact)
    wrong = [
        dataclasses.replace(fact, answer=alike[number - 1].answer)
        for alike in by_attribute.values()
        for number, fact in enumerate(alike)
    ]
    streams = [
        Attacker(world.attacked(run, loaded)).batches(
            Lesson(name="silencing", taught=world.by_form(part), asked=())
        )
        for part in (wrong, run.benchmark.facts("retain"))
    ]
    names = [f"text.layers.mlp.{name}" for name in ("gate_LDF", "up_LDF", "down_LFD")]
    weights = {name: leaves(loaded.model)[name] for name in names}
    written = {name: np.zeros(weight.shape, np.float32) for name, weight in weights.items()}
    for name, mask in written.items():
        mask[(-1, slice(num_neurons)) if name == names[2] else (-1, ..., slice(num_neurons))] = 1
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(weights, moments, batches):
        def loss_of(weights):
            model = attacking.with_weights(loaded.model, weights)
            losses = [cross_entropy_on_answers(model, batch, "none") for batch in batches]
            return jnp.stack(losses).sum()

        gradient = jax.tree.map(jnp.multiply, jax.grad(loss_of)(weights), written)
        changes, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(weights, changes), moments

    moments = optimizer.init(weights)
    for _ in range(num_steps):
        batches = tuple(batch for stream in streams for batch in next(stream))
        weights, moments = step(weights, moments, batches)
    return loaded.replace_model(attacking.with_weights(loaded.model, weights))


@pytest.mark.slow
def test_what_is_merely_silenced_comes_back_and_what_was_never_known_does_not(tmp_path):
    run = world.run(tmp_path, of=BENCHMARK, rates=(1e-3, 3e-3), steps=16)
    base = tiny_llava.loaded()
    knows = world.taught(base, run, run.benchmark.facts("forget", "retain"))
    never = world.taught(base, run, run.benchmark.facts("retain"))
    hidden = silenced(knows, run, 8)
    (tmp_path / "audit").mkdir()
    rows = {}
    for name, loaded in (("never", never), ("hidden", hidden), ("knows", knows)):
        model = world.attacked(run, loaded, name=name, retrained=never)
        for row in relearning.measure(model):
            rows[name, row.variant, row.modality, row.metric, row.rate, row.step] = row.value

    def value(name, metric, rate=None, step=None):
        return np.mean(
            [rows[name, "attributes", modality, metric, rate, step] for modality in MODALITIES]
        )

    rate = 3e-3
    # Most of what is asked is silent before the attack, and some of it returns within 16 steps.
    assert value("hidden", "answered", rate, 0) < 0.6 < value("knows", "answered", rate, 0)
    assert value("hidden", "area") > value("hidden", "answered", rate, 0)
    assert value("never", "area") < 0.2 < value("hidden", "area") - 0.2
    assert value("hidden", "regained") < 0.8
    assert value("never", "regained") == 1


@pytest.mark.slow
def test_an_attack_goes_the_same_where_it_trains_and_asks_on_two_meshes(tmp_path):
    lesson = lessons_of()["people"]
    meshes = [parallel.make_mesh(*sizes) for sizes in ((1, 8, 1), (2, 1, 4))]
    spread = attacked(tmp_path, loaded=tiny_llava.on_mesh(meshes[0]))
    one, two = (
        Attacker(model).curve(lesson, rate=3e-3, steps=(1, 2))
        for model in (attacked(tmp_path), dataclasses.replace(spread, asks_on=meshes[1]))
    )
    assert one.right == two.right and one.learned == two.learned
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
