"""SIGTERM is heard in every long loop, and learned gates go on from where they were stopped."""

import dataclasses
import gc
import signal
import sys

import pytest
import tiny_llava

from manu_jax import faults
from manu_jax.config import named_method
from manu_jax.data.batches import encode_all
from manu_jax.data.strangers import strangers
from manu_jax.importance import learned, own_texts, passes, people
from manu_jax.importance.job import ScoringJob
from manu_jax.run import exit_status
from manu_jax.training import edited, encoded_rows, replay, strangers_target
from manu_jax.types import Sample

TEXTS = [Sample(((f"USER: Lima or Oslo? {word}", True),), ()) for word in ("Oslo", "Lima")]


def job_of(directory=None):
    """Return a short learning of gates."""
    facts = tiny_llava.facts(4)
    forms = {form: tiny_llava.forms(facts, form) for form in ("image", "text")}
    method = named_method("learned", steps=5, batch_forget=2, batch_keep=2)
    return ScoringJob(tiny_llava.loaded(), method, forms, forms, directory=directory)


@pytest.fixture
def job(tmp_path):
    return job_of(tmp_path / "statistics")


@pytest.fixture(scope="module")
def whole():
    """The scores of an undisturbed job."""
    return learned.learn_gates(job_of())


def stop_after(monkeypatch, count):
    """Let SIGTERM come before the loop asks for the `count`-th time."""
    asked = iter(range(count - 1))
    monkeypatch.setattr(faults, "stop_is_due", lambda: next(asked, None) is None)


@pytest.mark.slow
def test_gates_go_on_from_where_they_were_stopped_to_the_same_bits(job, whole, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(faults.Stopped):
            learned.learn_gates(job)
    (folder,) = job.directory.iterdir()
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]
    steps = []
    step = learned._step

    def counted(*arguments, **settings):
        steps.append(int(arguments[4]))
        return step(*arguments, **settings)

    monkeypatch.setattr(learned, "_step", counted)
    found = learned.learn_gates(job)
    assert steps == [3, 4] and not list(job.directory.iterdir())
    for tower, scores in whole.items():
        assert scores.any()
        assert found[tower].tobytes() == scores.tobytes()


def test_another_job_does_not_go_on_from_there(job, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(faults.Stopped):
            learned.learn_gates(job)
    other = dataclasses.replace(job, seed=job.seed + 1)
    assert learned._checkpoints(other) != learned._checkpoints(job)
    monkeypatch.setattr(learned, "SAVE_EVERY", 2)
    monkeypatch.setattr(learned.parallel, "on_first_process", lambda action: None)
    learned.learn_gates(other)
    steps = {
        folder.name: sorted(p.name for p in folder.iterdir()) for folder in job.directory.iterdir()
    }
    assert steps == {
        learned._checkpoints(job).name: ["step-00000001"],
        learned._checkpoints(other).name: ["step-00000002", "step-00000004"],
    }


def of_people(loaded, facts):
    samples = tiny_llava.forms(facts, "text")
    people.collect_people(loaded, samples, named_method("paper"), modality="text", batch_size=2)


def over_samples(loaded, facts):
    samples = tiny_llava.forms(facts, "text")
    passes.run_over(
        loaded, samples, lambda total, batch: total + 1, start=0, batch_size=2, title="a pass"
    )


def of_own_texts(loaded, facts):
    own_texts.sampled(loaded, 2, tokens=2, seed=0)


def of_what_is_said(loaded, facts):
    replay.said_at(loaded, TEXTS)


def of_strangers(loaded, facts):
    asked = strangers(facts, facts, 2, seed=0, portraits=None)
    strangers_target.stranger_target(loaded, facts, asked, modality="text")


def of_use(loaded, facts):
    edited._squares(loaded, tiny_llava.forms(facts, "text"))


def of_what_enters(loaded, facts):
    encoded = encode_all(loaded, tiny_llava.forms(facts, "text"))
    encoded_rows.EncodedRows(loaded, encoded, first_layer=1)


@pytest.mark.parametrize(
    "loop",
    [
        over_samples,
        of_own_texts,
        *(
            pytest.param(loop, marks=pytest.mark.slow)
            for loop in (of_people, of_what_is_said, of_strangers, of_use, of_what_enters)
        ),
    ],
)
def test_a_loop_hears_that_it_is_to_stop(loop, monkeypatch):
    stop_after(monkeypatch, 1)
    with pytest.raises(faults.Stopped):
        loop(tiny_llava.loaded(), tiny_llava.facts(4))


def test_ctrl_c_that_python_drops_is_heard_at_the_next_step(monkeypatch, capsys):
    """As in JAX's callback of the garbage collector."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: dropped.append(1))
    dropped = []

    def interrupted(*_):
        gc.callbacks.remove(interrupted)
        signal.raise_signal(signal.SIGINT)
        for _ in range(1000):
            pass

    def action():
        gc.callbacks.append(interrupted)
        gc.collect()
        assert dropped and faults.stop_is_due()
        faults.stop_if_due()

    try:
        assert exit_status(action) == 130
        assert faults.STOPPED in capsys.readouterr().err
        assert not faults.stop_is_due()
    finally:
        signal.signal(signal.SIGINT, before)
