"""SimNPO and DPO against PyTorch, and whose answers DPO prefers."""

import dataclasses

import numpy as np
import pytest
import tiny_llava
import torch
import torch_peer
from torch.nn import functional as F
from torch_peer import FORGET, KEEP_WEIGHT, PREFERRED, answers, keep_cross_entropy, log_p

from manu_jax.training.recipes import RECIPES
from manu_jax.training.unlearner import answered_by_others, refused
from manu_jax.types import ManuError


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"beta": 2.0, "delta": 0.4, "forget_weight": 0.5}])
def test_simnpo_is_that_of_pytorch(settings):
    beta, delta, weight = {"beta": 4.5, "delta": 0.0, "forget_weight": 0.125, **settings}.values()

    def expected(peer, _):
        nll = torch.stack([-one.mean() for one in log_p(answers(peer, FORGET))])
        found = -2 / beta * F.logsigmoid(beta * (nll - delta)).mean()
        return weight * found + KEEP_WEIGHT * keep_cross_entropy()

    torch_peer.check("simnpo", expected, **settings)


def test_simnpo_needs_no_reference():
    assert torch_peer.data("simnpo").reference is None  # so its loss above was without


@pytest.mark.slow
def test_dpo_is_that_of_pytorch():
    assert RECIPES["dpo_idk"].losses == RECIPES["altpo"].losses
    beta = 0.3

    def expected(peer, vanilla):
        def gain(samples):
            sums = [[one.sum() for one in log_p(answers(m, samples))] for m in (peer, vanilla)]
            return torch.stack(sums[0]) - torch.stack(sums[1]).detach()

        margin = beta * (gain(PREFERRED) - gain(FORGET))
        return -2 / beta * F.logsigmoid(margin).mean() + KEEP_WEIGHT * keep_cross_entropy()

    torch_peer.check("altpo", expected, beta=beta)


FACTS = tiny_llava.facts(4)


def person(fact, person_id, **changes):
    return dataclasses.replace(fact, person_id=person_id, **changes)


def answered(facts, others, seed=0):
    return answered_by_others(facts, others, seed=seed, where="unlearn (x)")


def test_the_preferred_answer_is_another_persons_to_the_same_question():
    others = [
        person(FACTS[0], "100", answer="right"),
        person(FACTS[0], "101", answer=FACTS[0].answer),  # the fact's own
        person(FACTS[0], FACTS[0].person_id, answer="own person"),
        person(FACTS[0], "102", answer="other words", question="Which town is it?"),
    ]
    (found,) = answered(FACTS[:1], others)
    assert found == dataclasses.replace(FACTS[0], answer="right")
    # Nobody is asked in the same words: the same attribute counts.
    (found,) = answered(FACTS[:1], others[3:])
    assert found.answer == "other words"


def test_preferred_answers_are_drawn_by_the_seed():
    others = [person(FACTS[0], f"1{i}", answer=f"answer {i}") for i in range(50)]
    facts = [FACTS[0]] * 8
    one, again, other = (answered(facts, others, seed) for seed in (0, 0, 1))
    assert one == again != other and len({fact.answer for fact in one}) > 1


def test_facts_that_nobody_answers_otherwise_are_an_error():
    alone = dataclasses.replace(FACTS[1], question="Alone?", attribute="alone")
    with pytest.raises(ManuError, match=r"unlearn \(x\): 1 of 2 facts .*dpo_idk:\n  001/alone"):
        answered([FACTS[0], alone], [person(FACTS[0], "9", answer="Riga")])


@pytest.mark.parametrize("change", [refused, lambda facts: answered(facts, FACTS[::-1])])
def test_each_preferred_answer_stands_beside_the_fact_to_forget(monkeypatch, tmp_path, change):
    """At every step, in every form: the same prompts in the same rows."""
    from test_unlearner import section

    from manu_jax.training import unlearner

    loaded = tiny_llava.loaded()
    seen = []

    def train_loop(loaded, phases_at, section, *, num_steps, **_):
        seen.extend(phases_at(step)[0][1] for step in range(num_steps))

    monkeypatch.setattr(unlearner, "train_loop", train_loop)
    monkeypatch.setattr(unlearner, "trained", lambda *_: None)
    objective = "dpo_idk" if change is refused else "altpo"
    facts = tiny_llava.facts(6)  # answers of unequal length
    one = section(objective, steps=12, batch_size=4)
    unlearner.unlearn(
        loaded, one, forget=facts, keep=[person(f, "9", answer="Riga") for f in facts],
        directory=tmp_path, seed=0, reference=loaded,
    )  # fmt: skip

    def prompts(batch):
        tokens = np.where(batch.attention_mask_BT & (batch.loss_weights_BT == 0), 1, 0)
        return [
            tuple(np.asarray(ids)[mask > 0].tolist())
            for ids, mask, weight in zip(
                batch.token_ids_BT, tokens, batch.example_weights_B, strict=True
            )
            if weight
        ]

    assert {data.forget.images is None for data in seen} == {True, False}
    for data in seen:
        assert prompts(data.forget) == prompts(data.preferred)
        np.testing.assert_array_equal(
            data.forget.example_weights_B, data.preferred.example_weights_B
        )
