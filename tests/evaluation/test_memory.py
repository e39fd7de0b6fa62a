import re

import pytest
import tiny_llava

from manu_jax.data.forms import forms
from manu_jax.data.record import Benchmark, Person
from manu_jax.evaluation.likelihood import share_right
from manu_jax.evaluation.memory import check_memory
from manu_jax.types import ManuError


def benchmark(facts):
    person = Person("001", "Ada Falk", (), {}, tuple(facts), ())
    return Benchmark({"forget": (person,), "retain": (person,)}, {})


def test_gate_tells_what_is_known_in_each_form_and_the_remedy():
    facts = tiny_llava.facts()
    with pytest.raises(ManuError) as caught:
        check_memory(tiny_llava.loaded(), benchmark(facts), 0.95)
    shares = {
        modality: share_right(tiny_llava.loaded(), forms(facts, modality), 32)
        for modality in ("image", "text")
    }
    assert max(shares.values()) < 0.95
    told = dict(re.findall(r"(image|text) ([\d.]+)%", str(caught.value)))
    assert told == {modality: f"{100 * share:.1f}" for modality, share in shares.items()}
    assert "95.0%" in str(caught.value) and "train.steps" in str(caught.value)


def test_gate_of_zero_lets_any_model_pass():
    check_memory(tiny_llava.loaded(), benchmark(tiny_llava.facts()), 0.0)


def test_people_without_facts_are_an_error():
    with pytest.raises(ManuError, match="have no facts in either form.*data.train_path"):
        check_memory(tiny_llava.loaded(), benchmark(()), 0.5)
