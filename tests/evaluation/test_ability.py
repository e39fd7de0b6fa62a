"""General ability beside a benchmark: who is asked, and what the numbers are."""

import types
from typing import Any

import jax
import numpy as np
import pytest
import tiny_llava
from test_kept import run_of

from manu_jax.context import Run
from manu_jax.data.texts import text_samples
from manu_jax.evaluation.analyses import ability
from manu_jax.evaluation.analyses.ability import ANALYSIS, MEANS, Ability
from manu_jax.evaluation.distance import answer_kl
from manu_jax.types import VANILLA, BatchShape, question_sample

PASSAGES = ("Where does this person live? In Oslo.", "What about the winding answer")
COMPLETIONS = (("this person is a", "baker"), ("What about", "chess"), ("It is", "Rome"))
CHAT = ("Where?", "What about this person?")


def damaged():
    """The tiny model with other weights in its last layer."""
    loaded = tiny_llava.loaded()
    random = np.random.default_rng(1)

    def damage(leaf):
        noise = 0.1 * random.normal(size=leaf.shape).astype(np.float32)
        return jax.device_put(np.asarray(leaf) + noise)

    model = jax.tree.map(damage, loaded.model)
    return loaded.replace_model(model)


@pytest.fixture
def small(monkeypatch):
    """The analysis with texts that a tiny model can be asked, and without its gates."""
    for name, value in {
        "LEAST_VOCABULARY": 1, "LEAST_CONTEXT": 1, "LEAST_RIGHT": 0.0, "NEW_TOKENS": 5,
        "COMPLETIONS": COMPLETIONS, "CHAT": CHAT, "english_passages": lambda: PASSAGES,
    }.items():  # fmt: skip
        monkeypatch.setattr(ability, name, value)


def evaluated_of(folder, monkeypatch, other=damaged) -> Any:
    run = run_of(folder)
    name = run.config.method.name
    monkeypatch.setattr(Run, "models", lambda self: {VANILLA: tiny_llava.loaded, name: other})
    return types.SimpleNamespace(
        run=run, models=(VANILLA, name), bootstrap={"resamples": 20, "seed": 0}
    )


@pytest.fixture
def rows(small, tmp_path, monkeypatch):
    return list(ability.measure(evaluated_of(tmp_path, monkeypatch)))


def by_place(rows):
    return {(row.model, row.measure): row for row in rows if row.measure in MEANS}


def test_numbers_are_those_of_single_samples(rows):
    found, name = by_place(rows), rows[-1].model
    loaded, other = tiny_llava.loaded(), damaged()
    losses, right = [], []

    def logits_of(coded):
        batch = other.collate([coded], BatchShape(length=tiny_llava.SIZES.text.context))
        return np.asarray(tiny_llava.logits(other.model, batch))[0]

    for sample in text_samples(PASSAGES, group="p"):
        coded = other.encode(sample)
        logits_TV = logits_of(coded)
        wide = logits_TV.astype(np.float64)
        log_p_TV = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
        places = np.flatnonzero(coded.loss_weights_T)
        losses += [-log_p_TV[t - 1, coded.token_ids_T[t]] for t in places]
    for beginning, word in COMPLETIONS:
        coded = other.encode(question_sample(beginning, f" {word}"))
        logits_TV = logits_of(coded)
        places = np.flatnonzero(coded.loss_weights_T)
        right.append(all(logits_TV[t - 1].argmax() == coded.token_ids_T[t] for t in places))
    english = found[name, "english"]
    # float32 against float64.
    assert english.value == pytest.approx(np.mean(losses), rel=1e-4)
    assert english.n == len(losses) and "pydoc_data" in english.note
    assert found[name, "completions"].value == np.mean(right)
    chats = {row.prompt: row for row in rows if row.measure == "chat" and row.model == VANILLA}
    template = loaded.template
    answered = [
        question_sample(template.prompt(prompt, "text"), template.reply(row.answer))
        for prompt, row in chats.items()
        if row.answer
    ]
    kl = answer_kl(other, loaded, answered, batch_size=1)
    assert found[name, "chat_kl"].value == pytest.approx(kl.mean(), rel=1e-4) and kl.min() > 0
    assert found[name, "sentences"].n == len(CHAT)


def test_changes_are_from_vanilla_and_vanilla_has_none(rows):
    found, name = by_place(rows), rows[-1].model
    for measure in ("english", "completions", "sentences"):
        before, after = found[VANILLA, measure], found[name, measure]
        assert after.change == pytest.approx(after.value - before.value)
        assert before.change is None
    assert (VANILLA, "chat_kl") not in found
    assert {row.prompt for row in rows if row.measure == "chat" and row.model == name} == {*CHAT}


def test_a_model_that_did_not_change_lost_nothing(small, tmp_path, monkeypatch):
    rows = list(ability.measure(evaluated_of(tmp_path, monkeypatch, other=tiny_llava.loaded)))
    found, name = by_place(rows), rows[-1].model
    assert found[name, "chat_kl"].value == pytest.approx(0, abs=1e-6)
    for measure in ("english", "completions", "sentences"):
        assert found[name, measure].change == found[name, measure].change_low == 0


def test_a_small_vocabulary_is_left_out_and_nothing_is_asked(tmp_path, monkeypatch):
    for name in ("greedy", "log_likelihoods", "answer_kl"):
        monkeypatch.setattr(ability, name, None)
    (row,) = ability.measure(evaluated_of(tmp_path, monkeypatch, other=None))
    size = tiny_llava.loaded().config.text.vocabulary
    assert row.measure == "left_out" and f"vocabulary of {size} tokens" in row.note
    monkeypatch.setattr(ability, "LEAST_VOCABULARY", 1)
    (row,) = ability.measure(evaluated_of(tmp_path, monkeypatch, other=None))
    assert "context of 128 tokens is too short" in row.note


def test_a_model_that_knows_little_before_is_left_out(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ability, "LEAST_RIGHT", 1.01)
    monkeypatch.setattr(ability, "greedy", None)
    (row,) = ability.measure(evaluated_of(tmp_path, monkeypatch, other=None))
    assert row.measure == "left_out" and "completes 0% of 3 sentences" in row.note


def test_it_is_asked_for_unless_the_config_says_not(tmp_path):
    run = run_of(tmp_path)
    assert ANALYSIS.applies(run)
    values = run.config.model_dump()
    values["evaluate"]["ability"] = False
    run.config = type(run.config).model_validate(values)
    assert not ANALYSIS.applies(run)


def test_rows_round_trip_without_what_they_do_not_fill(rows):
    for row in rows:
        plain = ANALYSIS.to_json(row)
        assert ANALYSIS.read(plain) == row and not list(ANALYSIS.check(row))
        assert None not in plain.values() and "" not in [plain.get("note"), plain.get("prompt")]
    faults = list(ANALYSIS.check(Ability(model="m", measure="taste", value=1.0)))
    assert faults == ["of m: unknown measure 'taste'"]
    assert list(ANALYSIS.check(Ability(model="m", measure="completions", value=1.5)))
