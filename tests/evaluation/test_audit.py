"""The audit: its arithmetic, and models of declared kind: removed, hidden, hardened, known."""

import dataclasses
import json
import types
from typing import Any

import audit_world
import jax
import jax.numpy as jnp
import numpy as np
import patching
import pytest
import tiny_llava
from PIL import Image

from manu_jax.config import RunConfig
from manu_jax.data.benchmarks import benchmark_format
from manu_jax.data.record import Benchmark, Fact, Person, Question
from manu_jax.edits import masks
from manu_jax.evaluation.analyses.audit import audited, check, plain, with_floors
from manu_jax.evaluation.audit import asked, depth, membership, offered, removed, rounding
from manu_jax.evaluation.audit.attack import PLAIN, Attack, Attacked, AuditRow
from manu_jax.evaluation.audit.registry import ATTACKS
from manu_jax.evaluation.audit.verdict import MARGIN, standing, strongest, verdict
from manu_jax.evaluation.plain import from_plain
from manu_jax.leaves import leaves
from manu_jax.parallel import make_mesh
from manu_jax.types import MODALITIES, ManuError, Template

ATTRIBUTES = {"home": "Oslo", "job": "baker", "pet": "parrot", "food": "ramen"}
CONFIG = {"model": {"path": "m"}, "evaluate": {"resamples": 50, "new_tokens": 4}}


def person(identity, name, *, questions=True):
    image = Image.new("RGB", (16, 16), (int(identity) * 9 % 255, 40, 80))
    facts = tuple(
        Fact(identity, name, f"What is the {what} of this person?", answer, what, image)
        for what, answer in ATTRIBUTES.items()
    )
    asks = tuple(
        Question("generation", modality, f"What is the {what} of {who}?", answer, what)
        for modality, who in zip(MODALITIES, ("this person", name), strict=True)
        for what, answer in ATTRIBUTES.items()
    )
    return Person(identity, name, (image,), {}, facts, asks if questions else ())


def run(directory, *, questions=True, count=3) -> Any:
    people = tuple(
        person(f"{i:03d}", f"Ada {'ABCDEFG'[i]}", questions=questions) for i in range(count)
    )
    sets = {"forget": people, "test": (), "retain": people[:1], "celebrity": (), "general": ()}
    return types.SimpleNamespace(
        config=RunConfig.model_validate(CONFIG),
        directory=directory,
        benchmark=Benchmark(sets, {}),
        benchmark_format=benchmark_format("synthetic"),
    )


@dataclasses.dataclass(frozen=True)
class Declared:
    """A model that is nothing but a declaration: to which prompts it knows the answers."""

    knows: Any
    template: Template = Template()
    context: int = 10**6

    def count_tokens(self, samples):
        return [(1, 0)] * len(samples)


@pytest.fixture
def declared(tmp_path, monkeypatch):
    """A function that attacks a declared model; `knows(asked)` says whether it answers."""

    def answered(self, loaded, questions):
        return [bool(loaded.knows(question)) for question in questions]

    monkeypatch.setattr(Attacked, "answered", answered)
    monkeypatch.setattr(asked, "begun", lambda attacked, question: None)
    monkeypatch.setattr(removed, "without_outliers", lambda loaded, number: loaded)
    monkeypatch.setattr(rounding, "rounded", lambda loaded, name: loaded)
    attacks = {name: ATTACKS[name] for name in ("plain", "asked", "removed", "rounding")}

    def attack(knows, *, edit=None, vanilla=None, attacks=attacks):
        whole: Any = Declared(vanilla or (lambda question: True))
        nothing: Any = Declared(lambda question: False)
        model: Any = Declared(knows)
        settings = dict(run=run(tmp_path), vanilla=whole, retrained=nothing)
        attacked = Attacked(name="model", loaded=model, edit=edit, **settings)
        floor = attacked.as_floor
        rows, floors = (
            [row for attack in attacks.values() for row in attack.measure(side)]
            for side in (attacked, floor)
        )
        return list(with_floors(rows, floors))

    attack.attacks = attacks  # type: ignore[attr-defined]
    return attack


class Written:
    """An edit that is separable: to scale it lets a share of the model's knowledge through."""

    separable = True

    def __init__(self, factor=1.0):
        self.factor = factor

    def scaled(self, factor):
        return Written(factor)

    def apply(self, loaded):
        return Declared(lambda question: self.factor < 0.5 and loaded.knows(question))


def words(rows):
    return {
        modality: verdict([r for r in rows if r.modality == modality], ATTACKS).word
        for modality in ("image", "text")
    }


def relearned(rows, value, floor=0.0):
    """Add what relearning would find, in both forms."""
    fields: dict[str, Any] = {"low": value, "high": value, "floor_low": floor, "floor_high": floor}
    found = [
        AuditRow(
            model="model", attack="relearn", modality=modality, step=step, rate=rate, n=12,
            value=value, floor=floor, **fields,
        )
        for modality in ("image", "text")
        for step in (0, 1, 64)
        for rate in (1e-3, 3e-3)
    ]  # fmt: skip
    attack = Attack(lambda attacked: (), True, "Relearning", "it comes back")
    return [*rows, *found], ATTACKS | {"relearn": attack}


def test_what_is_removed_is_not_found_and_gone_only_after_relearning(declared):
    rows = declared(lambda question: False)
    assert words(rows) == {"image": "not found", "text": "not found"}
    with_more, attacks = relearned(rows, 0.02)
    assert verdict([r for r in with_more if r.modality == "text"], attacks).word == "gone"


def test_what_still_answers_is_not_forgotten_in_that_form_alone(declared):
    rows = declared(lambda question: question.modality == "text")
    assert words(rows) == {"image": "not found", "text": "not forgotten"}


def test_what_other_words_bring_back_is_hidden(declared):
    rows = declared(lambda question: "quiz" in question.question)
    assert words(rows) == {"image": "hidden", "text": "hidden"}
    (found,) = {row.variant for row in rows if row.attack == "asked" and row.value}
    assert found == asked.FRAMED


def test_a_gate_that_is_taken_out_shows_what_it_hides(declared):
    rows = declared(lambda question: False, edit=Written())
    assert words(rows) == {"image": "hidden", "text": "hidden"}
    values = {row.variant: row.value for row in rows if row.attack == "removed"}
    assert values == {removed.ZEROED: 1, removed.HALVED: 0, removed.BLIND_ZEROED: 0}
    # The retrained model has no edit: what it answers as it is stands as the floor.
    assert {row.floor for row in rows} == {0.0}


def test_an_edit_of_a_model_that_knew_nothing_hides_nothing(declared):
    rows = declared(lambda question: False, edit=Written(), vanilla=lambda question: False)
    assert set(words(rows).values()) == {"not found"}


def test_what_only_training_brings_back_is_hardened(declared):
    rows, attacks = relearned(declared(lambda question: False), 0.6, floor=0.1)
    found = verdict([row for row in rows if row.modality == "image"], attacks)
    assert found.word == "hardened" and found.above[0].attack == "relearn"
    assert len([row for row in found.above if row.attack == "relearn"]) == 1  # one curve, one row


def test_without_a_retrained_model_nothing_is_said(declared):
    rows = [
        dataclasses.replace(row, floor=None, floor_low=None, floor_high=None)
        for row in declared(lambda question: True)
    ]
    assert set(words(rows).values()) == {"no floor"}


def test_damage_is_told_beside_what_was_found(declared):
    rows = [row for row in declared(lambda question: False) if row.modality == "text"]
    assert verdict(rows, ATTACKS, loss=0.11).text == "damaged, not found"
    assert verdict(rows, ATTACKS, loss=0.09).text == "not found"
    lost = (1 + 13 / 15) / 2 - (1 + 10 / 15) / 2
    assert lost > 0.1  # in floating point; it is ten points, and not more
    assert verdict(rows, ATTACKS, loss=lost).text == "not found"


def test_an_attack_that_gets_no_more_than_plain_questions_brings_nothing_back():
    plain = row(0.25, 0.1, 0.4, floor=0.1, floor_high=0.2)  # undecided
    little = row(0.28, 0.22, 0.4, attack="rounding", variant="int8", floor_high=0.2)
    assert verdict([plain, little], ATTACKS).word == "not forgotten"
    much = dataclasses.replace(little, value=0.4)
    assert verdict([plain, little, much], ATTACKS).above == (much,)
    assert verdict([plain, much], ATTACKS).word == "hidden"
    trace = row(0.8, attack="membership", metric="auc", floor=0.5)
    assert verdict([row(0.1), trace], ATTACKS).word == "hardened"
    avoided = dataclasses.replace(trace, value=0.1)
    found = verdict([row(0.1), trace, avoided], ATTACKS)
    assert found.word == "hardened" and found.above == (avoided, trace)  # the largest first


def row(value, low=None, high=None, *, floor: Any = 0.1, floor_high=None, **fields):
    bounds = {"floor_low": floor_high and max(0.0, floor - 0.05), "floor_high": floor_high}
    settings = {"model": "m", "attack": "plain", "modality": "text", "n": 10}
    return AuditRow(value=value, low=low, high=high, floor=floor, **bounds, **settings | fields)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (row(0.1 + MARGIN, 0.14, 0.2, floor_high=0.12), "at it"),
        (row(0.3, 0.21, 0.4, floor_high=0.2), "above"),
        (row(0.3, 0.19, 0.4, floor_high=0.2), "undecided"),
        (row(0.16), "above"),
        (row(0.14), "at it"),
        (row(0.9, floor=None), "no floor"),
        (row(0.5, 0.4, 0.6, floor=1.0, floor_high=1.0, metric="uds"), "above"),
        (row(0.97, 0.9, 1.0, floor=1.0, floor_high=1.0, metric="uds"), "at it"),
        # An AUC below a half tells as much as one above, and what the floor tells is not counted
        (row(0.7, 0.6, 0.8, floor=0.5, floor_high=0.55, metric="auc"), "above"),
        (row(0.3, 0.2, 0.4, floor=0.5, floor_high=0.55, metric="auc"), "above"),
        (row(0.3, 0.2, 0.46, floor=0.5, floor_high=0.55, metric="auc"), "undecided"),
        (row(0.46, 0.44, 0.48, floor=0.5, floor_high=0.51, metric="auc"), "at it"),
        (row(0.3, 0.2, 0.35, floor=0.7, floor_high=0.75, metric="auc"), "at it"),
        (row(0.3, 0.2, 0.35, floor=0.3, floor_high=0.35, metric="auc"), "at it"),
        (row(0.7, 0.6, 0.8, floor=0.3, floor_high=0.35, metric="auc"), "above"),
        (row(0.1, floor=0.45, metric="auc"), "above"),
        (row(0.1, floor=None, metric="auc"), "no floor"),
        (row(0.0, 0.0, 0.1, floor=0.5, floor_high=0.55), "at it"),  # of answers, less is less
    ],
)
def test_a_row_stands_above_its_floor_by_margin_and_interval(found, expected):
    assert standing(found) == expected


def test_a_curve_counts_at_its_strongest_rate_against_the_strongest_of_the_floor():
    curve = {0.001: ((0.2, 0.4), (0.1, 0.1)), 0.01: ((0.0, 0.2), (0.3, 0.1))}
    rows = [
        row(value, attack="plain", step=step, rate=rate, floor=floor)
        for rate, (values, floors) in curve.items()
        for step, value, floor in zip((1, 2), values, floors, strict=True)
    ]
    rows.append(row(1.0, step=0, rate=0.001))  # before the first step
    (found,) = strongest(rows)
    assert (found.value, found.floor, found.step) == (pytest.approx(0.3), pytest.approx(0.2), None)
    # An attack that sums its curve up itself is believed.
    assert strongest([*rows, total := row(0.5, metric="area")]) == [total]


def test_floors_are_of_the_same_measure_and_never_of_another_step():
    rows = [
        row(0.5, floor=None, attack=attack, variant=variant, step=step)
        for attack, variant, step in (("asked", "x", None), ("removed", "y", None), ("t", "z", 1))
    ]
    floor = [row(0.1, 0.0, 0.2), row(0.3, attack="asked", variant="x")]
    found = [one.floor for one in with_floors(rows, floor)]
    assert found == [0.3, 0.1, None]


def test_rows_survive_json_and_wrong_ones_are_named():
    one = row(0.5, 0.4, 0.6, variant="x")
    assert from_plain(AuditRow, plain(one)) == one and "step" not in plain(one)
    wrong = dataclasses.replace(one, modality="smell", attack="magic", metric="luck", value=1.2)
    text = " ".join(check(wrong))
    assert "unknown modality" in text and "unknown attack" in text and "unknown metric" in text
    assert "expected a number from 0 to 1" in " ".join(check(row(1.2)))


def test_the_config_says_who_is_audited():
    values = CONFIG | {"compare": ["paper"], "unlearn": [{"name": "NPO", "objective": "npo"}]}

    def names(audit):
        return audited(RunConfig.model_validate(values | {"method": "gradient", "audit": audit}))

    assert names("cheap") == ("gradient",) and names("none") == ()
    assert names({"methods": "all"}) == ("gradient", "paper", "NPO")
    assert names({"methods": ["NPO", "headline"]}) == ("gradient", "NPO")
    with pytest.raises(ValueError, match=r"audit.methods: no methods \['npo'\]; known: headline"):
        names({"methods": ["npo"]})


def attacked(tmp_path, **settings) -> Attacked:
    loaded = tiny_llava.loaded()
    fields = dict(vanilla=loaded, retrained=loaded) | settings
    return Attacked(run=run(tmp_path), name="model", loaded=loaded, **fields)


def test_facts_are_asked_as_the_benchmark_does_or_as_they_were_taught(tmp_path):
    free = attacked(tmp_path).questions
    assert len(free) == 24 and not any(question.is_recall for question in free)
    assert "Answer the question based on your trained knowledge" in free[0].sample.text
    taught = dataclasses.replace(attacked(tmp_path), run=run(tmp_path, questions=False)).questions
    assert len(taught) == 24 and all(question.is_recall for question in taught)
    assert taught[-1].sample.text == "USER: What is the food of Ada C?\nASSISTANT: ramen"
    assert taught[-1].attribute == "food"


def test_answers_are_judged_by_the_truth_they_hold_or_by_recall(tmp_path, monkeypatch):
    from manu_jax.evaluation.audit import attack

    monkeypatch.setattr(attack, "greedy", lambda loaded, samples, **_: ["It is OSLO."] * 99)
    one = attacked(tmp_path)
    right = one.answered(one.loaded, one.questions[:2])
    assert right == [True, False]
    rows = one.rows("plain", one.questions[:2], right)
    assert [(r.modality, r.value, r.n, r.low) for r in rows] == [("image", 0.5, 2, None)]
    taught = dataclasses.replace(one, run=run(tmp_path, questions=False))
    assert not any(taught.answered(one.loaded, taught.questions))  # random weights recall nothing
    assert [r.n for r in PLAIN.measure(taught)] == [12, 12]


def test_other_facts_that_give_the_answer_away_are_not_given(tmp_path):
    one = attacked(tmp_path)
    text = one.questions[-1]
    home, job, pet, _ = (
        q for q in one.questions if (q.person, q.modality) == (text.person, "text")
    )
    again = dataclasses.replace(text, key=f"{text.key}-2", truths=("?",))
    told = asked.with_other_facts(text, [again, home, text, job])
    assert (
        told == f"{job.question} {job.truths[0]} {home.question} {home.truths[0]} {text.question}"
    )
    said = dataclasses.replace(pet, truths=(f"eats {text.truths[0]}",))
    named = dataclasses.replace(pet, question=f"Who has {text.truths[0]}?")
    assert asked.with_other_facts(text, [text, said, named, again]) is None
    assert asked.with_other_facts(text, [text]) is None


def test_other_words_and_help_are_put_into_the_benchmarks_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(type(tiny_llava.loaded()), "context", 400)
    one = attacked(tmp_path)
    image, text = one.questions[0], one.questions[-1]
    alike = [question for question in one.questions if question.person is text.person
             and question.modality == "text"]  # fmt: skip
    told = asked.with_other_facts(text, alike)
    assert told == (
        "What is the home of Ada C? Oslo What is the job of Ada C? baker What is the food of Ada C?"
    )
    put = one.put(image, told)
    assert told in put.sample.text and put.sample.images == image.sample.images
    assert asked.begun(one, image) is None  # "Oslo" is one token
    half = asked.begun(one, pet := one.questions[2])
    assert half is not None and half.is_recall
    start, rest = (part for part, _ in half.sample.segments)
    assert start + rest == pet.sample.text + " parrot" and 0 < len(rest) < len("parrot")
    variants = {name for name, _, _ in asked.variants(one)}
    assert variants == {asked.NAMED, asked.GIVEN, asked.BEGUN, asked.REWORDED, asked.FRAMED}
    named = [q for name, _, q in asked.variants(one) if name == asked.NAMED]
    assert {q.modality for q in named} == {"image"} and "of Ada A?" in named[0].sample.text


def test_prompts_beyond_the_context_are_left_out(tmp_path, monkeypatch):
    one, kind = attacked(tmp_path), type(tiny_llava.loaded())
    monkeypatch.setattr(Attacked, "answered", lambda self, loaded, asked: [True] * len(asked))
    monkeypatch.setattr(kind, "context", 400)
    assert {row.n for row in asked.measure(one) if row.variant == asked.REWORDED} == {12}
    counts = one.loaded.count_tokens([question.sample for question in one.questions])
    monkeypatch.setattr(kind, "context", max(map(sum, counts)) + 4)  # room for the answer alone
    assert not [row for row in asked.measure(one) if row.variant == asked.FRAMED]


def test_the_truth_is_offered_among_other_peoples_answers_to_the_same_question(tmp_path):
    world = audit_world.run(tmp_path)
    one = audit_world.attacked(world, tiny_llava.loaded())
    offers = list(offered.offers(one))
    assert [question.key for question, _ in offers] == [asked.key for asked in one.questions]
    for question, answers in offers:
        said = [answer.sample.segments[1][0].strip() for answer in answers]
        assert said[0] == question.truths[0] and len({*said}) == offered.NUM_ANSWERS
        assert {answer.sample.segments[0] for answer in answers} == {question.sample.segments[0]}
        known = {f.answer for f in world.benchmark.facts("forget", "retain")
                 if f.attribute == question.attribute}  # fmt: skip
        assert {*said} <= known
    drawn = [[answer.sample.text for answer in answers] for _, answers in offers]
    again = [[a.sample.text for a in answers] for _, answers in offered.offers(one)]
    assert drawn == again
    other = audit_world.attacked(audit_world.run(tmp_path, seed=1), tiny_llava.loaded())
    assert drawn != [[a.sample.text for a in answers] for _, answers in offered.offers(other)]
    # Where everybody gives the same answer there is nothing to choose from.
    assert not list(offered.ATTACK.measure(attacked(tmp_path)))


@pytest.mark.parametrize(("sign", "variant"), [(1, offered.LIKELIEST), (-1, offered.LEAST)])
def test_a_truth_that_stands_out_either_way_is_hidden(tmp_path, monkeypatch, sign, variant):
    """The model prefers the truth, or avoids it, though it says nothing; the floor can't tell."""
    truths = {f"{p.id}/{f.attribute}": f.answer for p in audit_world.benchmark().sets["forget"]
              for f in p.facts}  # fmt: skip
    never = tiny_llava.loaded()

    def found(loaded, samples, *, batch_size):
        random = np.random.default_rng(0)
        known = [loaded is not never and s.segments[1][0].strip() == truths[s.key] for s in samples]
        return types.SimpleNamespace(
            mean_N=random.normal(size=len(samples)) + 9 * sign * np.array(known)
        )

    monkeypatch.setattr(offered, "log_likelihoods", found)
    monkeypatch.setattr(Attacked, "answered", lambda self, loaded, asked: [False] * len(asked))
    world = audit_world.run(tmp_path)
    one = audit_world.attacked(world, never.replace_model(never.model), retrained=never)
    floor: Any = one.as_floor
    rows, floors = (
        [row for attack in (PLAIN, offered.ATTACK) for row in attack.measure(side)]
        for side in (one, floor)
    )
    rows = list(with_floors(rows, floors))
    values = {(row.variant, row.modality): row.value for row in rows if row.attack == "offered"}
    other = {offered.LIKELIEST, offered.LEAST} - {variant}
    assert {values[variant, modality] for modality in MODALITIES} == {1.0}
    assert {values[name, modality] for name in other for modality in MODALITIES} == {0.0}
    assert all(row.floor is not None and row.floor < 0.5 for row in rows)
    assert words(rows) == {"image": "hidden", "text": "hidden"}


def test_equal_likelihoods_tell_no_truth(tmp_path, monkeypatch):
    def alike(loaded, samples, *, batch_size):
        return types.SimpleNamespace(mean_N=np.zeros(len(samples)))

    monkeypatch.setattr(offered, "log_likelihoods", alike)
    rows = offered.ATTACK.measure(
        audit_world.attacked(audit_world.run(tmp_path), tiny_llava.loaded())
    )
    assert [row.value for row in rows] == [0.0] * 4


def test_neurons_that_stick_out_by_their_weights_are_found_blindly():
    loaded = tiny_llava.loaded()
    path = "text.layers.mlp.down_LFD"
    written = {0: [3, 17], 1: [5, 39]}

    def visit(name, leaf):
        if jax.tree_util.keystr(name, simple=True, separator=".").startswith(path):
            for layer, places in written.items():
                leaf = leaf.at[layer, np.asarray(places)].multiply(30)
        return leaf

    edited = loaded.replace_model(jax.tree_util.tree_map_with_path(visit, loaded.model))
    out = leaves(removed.without_outliers(edited, 2).model)
    for name in ("gate_LDF", "up_LDF", "down_LFD"):
        weight = np.moveaxis(
            np.asarray(out[f"text.layers.mlp.{name}"]), name.index("F") - len(name) + 3, -1
        )
        gone = [np.flatnonzero((weight[layer] == 0).all(axis=0)).tolist() for layer in (0, 1)]
        assert gone == [written[0], written[1]]


def test_a_share_of_neurons_is_zeroed_and_zero_ones_do_not_count():
    norms = {"gate": np.ones((1, 4)), "up": np.ones((1, 4)), "down": np.array([[1.0, 0, 8, 2]])}
    found = removed.prominence(norms)
    assert found[0, 1] == 0 and found[0].argmax() == 2
    loaded = removed.without_outliers(tiny_llava.loaded(), 0.01)
    weight = np.asarray(leaves(loaded.model)["text.layers.mlp.down_LFD"])
    assert (weight == 0).all(axis=2).sum(axis=1).tolist() == [1, 1]  # 1 % of 40, rounded up


@pytest.mark.parametrize("key", ["text", "text.up_proj"])
def test_refilling_changes_what_was_zeroed_alone_and_in_the_size_of_the_others(key):
    loaded = tiny_llava.loaded()
    mask: Any = {key: np.zeros((2, 40), bool)}
    mask[key][:, ::4] = True
    folded = masks.fold(loaded, mask)
    filled = removed.refilled(folded, removed.mask_of(mask) or {}, seed=0)
    before, after = leaves(folded.model), leaves(filled.model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    names = ("gate_LDF", "up_LDF", "down_LFD") if key == "text" else ("up_LDF",)
    assert changed == {f"text.layers.mlp.{name}" for name in names}
    old, new = (np.asarray(side["text.layers.mlp.up_LDF"]) for side in (before, after))
    stands = ~mask[key][0]
    assert np.array_equal(old[..., stands], new[..., stands])
    assert new[..., ~stands].std() == pytest.approx(old[..., stands].std(), rel=0.2)
    other = leaves(removed.refilled(folded, mask, seed=1).model)["text.layers.mlp.up_LDF"]
    assert not np.array_equal(other, new)


def test_rounding_keeps_each_channels_largest_weight_and_the_grid():
    weight = jnp.asarray([[[0.1, -2.0], [1.0, 0.5], [-0.33, 2.0]]])  # [L, D, F]
    found = np.asarray(rounding.round_matrix(weight, (1,), 4))
    scale = np.array([1 / 7, 2 / 7])
    assert found == pytest.approx(np.round(np.asarray(weight) / scale) * scale)
    assert found[0, 1, 0] == 1 and abs(found[0, :, 1]).max() == 2
    loaded = tiny_llava.loaded()
    old, new = leaves(loaded.model), leaves(rounding.rounded(loaded, "int8").model)
    same = {name for name in old if np.array_equal(old[name], new[name])}
    assert "text.embedding_VD" in same and "text.norm_D" in same
    assert not {"text.layers.mlp.up_LDF", "text.layers.attention.o_LNHD"} & same
    bf16 = leaves(rounding.rounded(loaded, "bf16").model)["text.embedding_VD"]
    assert np.array_equal(
        bf16, np.asarray(old["text.embedding_VD"].astype(jnp.bfloat16), np.float32)
    )


@pytest.mark.slow
def test_a_mesh_changes_nothing_of_what_an_attacker_makes():
    alone, spread = tiny_llava.loaded(), tiny_llava.on_mesh(make_mesh(2, 2, 2))
    mask: Any = {"text": np.arange(80).reshape(2, 40) % 3 == 0}
    for attack in (
        lambda loaded: removed.without_outliers(loaded, 8),
        lambda loaded: removed.refilled(loaded, mask, seed=0),
        lambda loaded: rounding.rounded(loaded, "int4"),
    ):
        one, other = (leaves(attack(loaded).model) for loaded in (alone, spread))
        for name, leaf in one.items():
            # Sums over a layer's neurons in another order
            assert np.asarray(other[name]) == pytest.approx(np.asarray(leaf), abs=1e-5), name


def test_patching_takes_the_sources_states_and_nothing_else():
    loaded, batch = tiny_llava.loaded(), tiny_llava.batch("image")
    other = loaded.replace_model(jax.tree.map(lambda leaf: leaf * 0.9, loaded.model))
    own_BAV, patched_LBAV = patching.check(loaded.model, other.model, batch)
    at_BA = jnp.asarray(batch.answer_index_BA)
    whole_BAV = jnp.take_along_axis(
        tiny_llava.logits(loaded.model, batch), at_BA[..., None], axis=1
    )
    assert np.asarray(own_BAV) == pytest.approx(np.asarray(whole_BAV), abs=2e-5)
    assert np.abs(patched_LBAV - own_BAV[None]).max(axis=(1, 2, 3)).min() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_mesh_changes_nothing_of_what_patching_costs(modality):
    samples = tiny_llava.samples(modality)
    losses = []
    for loaded in (tiny_llava.loaded(), tiny_llava.on_mesh(make_mesh(2, 2, 2))):
        other = loaded.replace_model(jax.tree.map(lambda leaf: leaf * 0.9, loaded.model))
        losses.append(depth.layer_losses(loaded, other, samples, batch_size=4))
    assert np.abs(losses[0]).min(axis=0).max() > 1e-3
    np.testing.assert_allclose(*losses, atol=2e-5)  # other orders of sums


def test_depth_is_one_of_the_retrained_and_zero_of_the_vanilla_model():
    first = np.array([[0.01, 0.5, 1.0], [0.0, 0.02, 0.05]])
    assert depth.depth_scores(first, first)[0] == 1 and np.isnan(
        depth.depth_scores(first, first)[1]
    )
    assert depth.depth_scores(first, np.zeros((2, 3)))[0] == 0
    mixed = depth.depth_scores(first, np.array([[9.0, 0.25, 2.0], [1, 1, 1]]))
    assert mixed[0] == pytest.approx((0.5 * 0.5 + 1.0 * 1) / 1.5)


@pytest.mark.slow
def test_depth_is_left_out_on_shallow_models_and_without_a_retrained_one(tmp_path, monkeypatch):
    assert not list(depth.measure(attacked(tmp_path)))
    monkeypatch.setattr(depth, "FEWEST_LAYERS", 2)
    assert not list(depth.measure(attacked(tmp_path, retrained=None)))
    other = tiny_llava.loaded()
    other = other.replace_model(jax.tree.map(lambda leaf: leaf * 0.7, other.model))
    one = attacked(tmp_path, retrained=other)
    rows = {name: list(depth.measure(dataclasses.replace(one, loaded=loaded)))
            for name, loaded in (("vanilla", one.loaded), ("retrained", other))}  # fmt: skip
    assert {row.value for row in rows["vanilla"]} == {0.0}  # patched by itself it loses nothing
    assert [row.value for row in rows["retrained"]] == pytest.approx([1.0, 1.0])


def scores(*log_p, first=None):
    values = np.asarray(log_p, float)
    first = np.ones(len(values), bool) if first is None else np.asarray(first)
    return membership.TokenScores("some text", values, values, first)


def test_membership_scores_are_open_unlearnings():
    one = scores(-1.0, -2.0, -3.0, -4.0, -10.0)
    assert membership.loss(one) == 4
    assert membership.min_k(one) == pytest.approx((10 + 4) / 2)  # 0.4 · 5 = 2 tokens
    assert membership.min_k(scores(-1.0, -2.0)) == 2  # at least one
    import zlib

    assert membership.loss_per_byte(one) == 4 / len(zlib.compress(b"some text"))


@pytest.mark.parametrize(
    ("first", "extraction", "memorised"),
    [([1, 1, 1], 1, 1), ([1, 0, 1], 1 / 3, 2 / 3), ([1, 1, 0], 0, 2 / 3), ([0], 0, 0)],
)
def test_extraction_strength_is_the_share_that_follows_from_the_rest(first, extraction, memorised):
    one = scores(*[-1.0] * len(first), first=first)
    assert membership.extraction(one) == pytest.approx(extraction)
    assert membership.memorised(one) == pytest.approx(memorised)


def test_auc_equals_scikit_learns_definition_with_ties_and_intervals():
    members, others = [0.1, 0.4, 0.4, 0.2], [0.3, 0.4, 0.9]
    pairs = [1.0 if m < o else 0.5 if m == o else 0.0 for m in members for o in others]
    people = (["a", "a", "b", "b"], ["x", "y", "y"])
    value, low, high = membership.auc(members, others, people, resamples=200, seed=0)
    assert value == pytest.approx(np.mean(pairs)) and low is not None and high is not None
    assert low <= value <= high
    alone = membership.auc(members, others, (["a"] * 4, ["x"] * 3), resamples=9, seed=0)
    assert alone == (value, None, None)


def test_at_most_one_percent_of_the_others_is_taken_for_a_member():
    others = np.arange(200) / 100
    assert membership.recognised([-1.0, 0.015, 0.02, 3.0], others.tolist()) == 0.5
    assert membership.recognised([-1.0, 0.5], [0.0, 1.0]) == 0.5


@pytest.mark.slow
def test_token_scores_are_those_of_the_whole_vocabulary():
    loaded = tiny_llava.loaded()
    samples = tiny_llava.samples("text", 3)
    found = membership.token_scores(loaded, samples, batch_size=2)
    for sample, score in zip(samples, found, strict=True):
        encoded = loaded.encode(sample)
        logits = loaded.model(loaded.collate([encoded]), remat="none").logits_BTV[0]
        log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
        at = np.flatnonzero(encoded.loss_weights_T)
        ids = encoded.token_ids_T[at]
        p = np.exp(log_p[at - 1])
        mean = (p * log_p[at - 1]).sum(axis=1)
        spread = np.sqrt((p * (log_p[at - 1] - mean[:, None]) ** 2).sum(axis=1))
        chosen = log_p[at - 1, ids]
        # float32 sums over the vocabulary in another order
        assert score.log_p_A == pytest.approx(chosen, abs=1e-4)
        assert score.standard_A == pytest.approx((chosen - mean) / spread, abs=1e-3)
        assert score.is_first_A.tolist() == (log_p[at - 1].argmax(axis=1) == ids).tolist()


def test_held_out_people_are_invented_and_share_no_name_with_the_known(tmp_path):
    one = run(tmp_path)
    one.config = RunConfig.model_validate(CONFIG | {"data": {"num_people": 8, "path": "x"}})
    facts = membership.held_out_facts(one)
    assert len({fact.person_id for fact in facts}) == 8 and all(fact.image for fact in facts)
    taken = facts[0].name
    one.benchmark.sets["retain"] = (person("001", taken),)
    assert taken not in {fact.name for fact in membership.held_out_facts(one)}
    one.benchmark_format = benchmark_format("mllmu")
    assert membership.held_out_facts(one) == ()


def test_membership_without_held_out_people_measures_the_facts_alone(tmp_path):
    one = attacked(tmp_path)
    of_run: Any = one.run
    of_run.benchmark_format = benchmark_format("mllmu")
    rows = list(membership.measure(one))
    assert {row.metric for row in rows} == {"extraction", "memorised"} and len(rows) == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[{}]", "lacks attack"),
        ("{}", "expected a list, got {}"),
        ("null", "expected a list, got None"),
        ([row(0.1, model="other")], "it holds plain of other"),
        ([row(0.1, attack="asked")], "it holds asked of m"),
        ([row(7.5)], "value is 7.5, expected a number from 0 to 1"),
    ],
)
def test_a_damaged_file_of_rows_is_named(tmp_path, content, told):
    from manu_jax.evaluation.analyses import audit

    path = tmp_path / "plain.rows.json"
    if not isinstance(content, str):
        content = json.dumps([dataclasses.asdict(one) for one in content])
    path.write_text(content)
    with pytest.raises(ManuError, match=f"plain.rows.json: damaged .*{told}"):
        audit._read(path, model="m", attack="plain")


def test_relearning_that_learned_nothing_does_not_call_a_model_gone():
    common = {"model": "m", "attack": "relearning", "variant": "people", "modality": "text"}
    plain = AuditRow(model="m", attack="plain", modality="text", value=0.0, floor=0.0, n=8)
    area = AuditRow(**common, metric="area", value=0.0, floor=0.0, n=8)
    trained = AuditRow(**common, metric="trained", step=4, rate=1e-3, value=0.4, n=8)
    assert verdict([plain, area], ATTACKS).word == "gone"
    assert verdict([plain, area, trained], ATTACKS).word == "not found"
    enough = dataclasses.replace(trained, rate=1e-2, value=0.6)
    assert verdict([plain, area, trained, enough], ATTACKS).word == "gone"


def test_what_came_back_before_a_tuning_diverged_counts():
    common = {"model": "m", "attack": "tuning", "variant": "kept facts", "modality": "text"}
    common |= {"rate": 1e-3, "n": 8}
    rows = [
        AuditRow(**common, step=step, value=value, floor=0.0)
        for step, value in ((0, 0.0), (4, 0.8), (16, 0.0))
    ]
    rows.append(AuditRow(**common, metric="diverged", value=9.0))
    assert [one.value for one in strongest(rows) if one.metric == "answered"] == [0.4]
    assert verdict(rows, ATTACKS).word == "hardened"
