"""Prompts that join as answers end: the same tokens, in fewer steps, with one compile a length."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.data import batches
from manu_jax.data.probes import Sampling
from manu_jax.evaluation import decoding, refilling
from manu_jax.evaluation.generate import greedy_tokens, sampled
from manu_jax.models.hf.generation import GenerationRules
from manu_jax.types import ManuError, Sample

NEW_TOKENS = 12
PROGRAMS = ("_begun", "_none_begun", "_joined", "_went_on")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Let answers of a few tokens count as long, and all prompts of a form have one length."""
    monkeypatch.setattr(batches, "MAX_BUCKETS", 1)
    monkeypatch.setattr(batches, "MULTIPLE", 64)
    monkeypatch.setattr(refilling, "SHORT", 4)


@functools.cache
def asked(modality="text", count=22):
    """Prompts of mixed lengths; several on each image."""
    random = np.random.default_rng(0)
    samples = tiny_llava.samples(modality, min(count // 3, 7))
    found = []
    for number in range(count):
        sample = samples[number % len(samples)]
        text = "." * int(random.integers(0, 20)) + sample.segments[0][0]
        found.append(Sample(((text, False),), sample.images, f"{number}/{sample.key}"))
    return found


@functools.cache
def ends():
    """Tokens that end some answers at once, some later, and some never."""
    free = greedy_tokens(tiny_llava.loaded(), asked(), new_tokens=NEW_TOKENS, batch_size=32)
    for row in free:
        for other in free:
            chosen = (int(row[0]), int(other[5]))
            lengths = {
                int(np.append(np.flatnonzero(np.isin(tokens, chosen)), NEW_TOKENS)[0])
                for tokens in free
            }
            if {0, NEW_TOKENS} < lengths and len(lengths) > 4:
                return chosen
    raise AssertionError("the tiny model's answers are all alike")


def with_ends(loaded=None, **rules):
    loaded = loaded or tiny_llava.loaded()
    rules = GenerationRules(eos_ids=ends(), **rules)
    return dataclasses.replace(loaded, generation=rules)


def written(loaded, samples, batch_size):
    return greedy_tokens(loaded, samples, new_tokens=NEW_TOKENS, batch_size=batch_size)


def in_whole_batches(loaded, samples, batch_size=32):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refilling, "SHORT", NEW_TOKENS)
        return written(loaded, samples, batch_size)


def check_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("batch_size", [4, 8])
def test_prompts_that_join_are_answered_as_in_a_batch_of_their_own(batch_size):
    loaded, samples = with_ends(), asked()
    found = written(loaded, samples, batch_size)
    assert refilling._went_on._cache_size()
    check_equal(found, in_whole_batches(loaded, samples))
    assert len({len(tokens) for tokens in found}) > 4
    check_equal(written(loaded, samples[::-1], batch_size)[::-1], found)


def test_images_and_texts_in_one_call():
    loaded, samples = with_ends(), [*asked()[:9], *asked("image")[:12]]
    check_equal(written(loaded, samples[::2] + samples[1::2], 4),
                in_whole_batches(loaded, samples[::2] + samples[1::2]))  # fmt: skip


def test_rows_that_have_ended_do_not_wait_for_the_longest(monkeypatch):
    loaded, samples = with_ends(min_new_tokens=1), asked()  # programs of their own, which count
    steps, decode = [], type(loaded.model).decode

    def counted(self, token_ids_B, cache):
        jax.debug.callback(lambda: steps.append(1))
        return decode(self, token_ids_B, cache)

    def steps_of(action):
        steps.clear()
        found = action()
        jax.effects_barrier()
        return found, len(steps)

    monkeypatch.setattr(type(loaded.model), "decode", counted)
    found, few = steps_of(lambda: written(loaded, samples, 4))
    expected, many = steps_of(lambda: in_whole_batches(loaded, samples, 4))
    check_equal(found, expected)
    total = sum(min(len(tokens) + 1, NEW_TOKENS) - 1 for tokens in found)
    assert total / 4 <= few < 0.9 * many


def test_one_compile_a_length_however_many_prompts_and_answers(monkeypatch):
    monkeypatch.setattr(batches, "MAX_BUCKETS", 2)
    monkeypatch.setattr(batches, "FREE_BUCKETS", 2)
    monkeypatch.setattr(batches, "MULTIPLE", 16)
    loaded = with_ends(min_new_tokens=2)  # no program is there yet
    before = [getattr(refilling, name)._cache_size() for name in PROGRAMS]
    written(loaded, asked(), 4)
    counts = [getattr(refilling, name)._cache_size() for name in PROGRAMS]
    assert [now - then for now, then in zip(counts, before, strict=True)] == [2] * len(PROGRAMS)
    turned = asked()[::-1][:17]
    written(loaded, turned, 4)
    changed = loaded.replace_model(jax.tree.map(lambda x: x * 0.9, loaded.model))
    written(changed, turned, 4)
    assert [getattr(refilling, name)._cache_size() for name in PROGRAMS] == counts


def test_rules_see_each_answer_at_its_own_age():
    rules = {"repetition_penalty": 1.3, "no_repeat_ngram": 2, "suppressed_first": (7, 9)}
    loaded = with_ends(min_new_tokens=3, forced_eos=(ends()[0],), **rules)
    found = written(loaded, asked(), 4)
    check_equal(found, in_whole_batches(loaded, asked()))
    with pytest.raises(AssertionError):
        check_equal(found, written(with_ends(), asked(), 4))


def test_drawn_answers_take_their_own_numbers():
    samples = asked()
    settings = {"sampling": Sampling(1, 2.0, 0.9), "new_tokens": NEW_TOKENS}
    names = [sample.key for sample in samples]
    found = sampled(with_ends(), samples, names, **settings, batch_size=4)
    expected = sampled(with_ends(), samples, names, **settings, batch_size=32)
    assert found == expected and len(set(found)) > 10


def test_windows_look_back_over_the_end_of_the_ring():
    loaded = with_ends()
    config = dataclasses.replace(loaded.config.text, windows=(5, None))
    model = jax.tree.map(lambda leaf: leaf, loaded.model)
    model.text.config = config
    model.text.layers.config = config
    narrow = dataclasses.replace(loaded, model=model)
    found = written(narrow, asked(), 4)
    check_equal(found, in_whole_batches(narrow, asked()))
    with pytest.raises(AssertionError):
        check_equal(found, written(loaded, asked(), 4))


@pytest.mark.parametrize("sizes", [(2, 2, 2), pytest.param((8, 1, 1), marks=pytest.mark.slow)])
def test_a_mesh_writes_what_one_device_does(sizes):
    samples = asked("image", 40)
    mesh = parallel.make_mesh(*sizes)
    found = written(with_ends(tiny_llava.on_mesh(mesh)), samples, 16)
    check_equal(found, in_whole_batches(with_ends(), samples))


def test_each_leaf_of_the_answers_tells_its_batch_axis():
    loaded = tiny_llava.loaded()
    batch = tiny_llava.batch("text", padding_side="left")
    how = decoding.Writing(3, (2,), GenerationRules(), Sampling(1, 1.0, 1.0))
    make = functools.partial(decoding.begin, how=how)
    uniform_BA = np.zeros((6, 3), np.float32)
    answers, _ = jax.eval_shape(make, loaded.model, batch, uniform_BA)
    for path, leaf in jax.tree_util.tree_leaves_with_path(answers):
        axis = decoding.batch_axis(path)
        assert (leaf.shape == ()) if axis is None else (leaf.shape[axis] == 6), path


def test_a_model_of_nan_is_an_error():
    loaded = with_ends()
    broken = loaded.replace_model(jax.tree.map(lambda x: x * np.nan, loaded.model))
    with pytest.raises(ManuError, match="not finite"):
        written(broken, asked(), 4)


def test_few_prompts_and_short_answers_are_written_in_whole_batches(monkeypatch):
    how = decoding.Writing(5, (2,))
    loaded = tiny_llava.loaded()
    assert refilling.refills(loaded, 9, how, batch_size=8)
    assert not refilling.refills(loaded, 8, how, batch_size=8)  # none waits
    assert not refilling.refills(loaded, 9, dataclasses.replace(how, new_tokens=4), batch_size=8)
    assert not refilling.refills(loaded, 9, how, batch_size=1)
