import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from manu_jax import checkpoint, parallel
from manu_jax.config import LoraSection, TrainSection
from manu_jax.training import trainer
from manu_jax.training.objectives import cross_entropy_on_answers
from manu_jax.types import ManuError

SECTION = TrainSection(steps=6, batch_size=4, learning_rate=3e-3, warmup=0.0, checkpoint_every=2)
TEXT = tiny_llava.samples("text")


def run(directory, *, loaded=None, samples=TEXT, section=SECTION, num_steps=6, seed=3):
    loaded = loaded or tiny_llava.loaded()
    return trainer.train(
        loaded, samples, section, num_steps=num_steps, directory=directory, seed=seed
    )


def bits(model):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The weights after six steps without an interruption."""
    return run(tmp_path_factory.mktemp("straight")).model


class Killed(BaseException):
    pass


def killed_after(monkeypatch, num_steps):
    """Let the process die when it has done so many steps."""
    real, done = trainer.train_step, []

    def step(*arguments, **named):
        if len(done) == num_steps:
            raise Killed
        done.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(trainer, "train_step", step)
    return done


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_killed_training_resumes_to_the_same_bits(num_steps, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(patch, num_steps)
        with pytest.raises(Killed):
            run(tmp_path)
    with monkeypatch.context() as patch:
        done = killed_after(patch, 100)
        resumed = run(tmp_path).model
    assert len(done) == 6 - num_steps // 2 * 2
    assert bits(resumed) == bits(straight)


def test_two_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, num_steps=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000008"]


def test_loss_falls_and_the_given_model_stays_as_it_is():
    before = bits(tiny_llava.loaded().model)
    batch = parallel.put_batch(tiny_llava.batch("text", 4, length=32), None)
    settings = trainer.step_settings(SECTION, tiny_llava.loaded(), cross_entropy_on_answers)
    state = trainer.initial_state(tiny_llava.loaded(), SECTION, jax.random.key(0))
    losses = []
    for _ in range(12):
        state, loss = trainer.train_step(
            state, batch, jnp.float32(1e-2), settings=settings, mesh=None
        )
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    assert bits(tiny_llava.loaded().model) == before
    assert bits(state.weights) != before


def test_loss_that_is_not_finite_is_an_error_and_nothing_is_saved(tmp_path):
    loaded = tiny_llava.loaded()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, loaded.model)
    with pytest.raises(
        ManuError, match=r"loss of step 0 is nan.*train.learning_rate \(now 0.003\)"
    ):
        run(tmp_path, loaded=loaded.replace_model(broken))
    assert not list(tmp_path.iterdir())


def test_fewer_steps_than_the_checkpoint_has_are_an_error(tmp_path):
    run(tmp_path, num_steps=5)
    with pytest.raises(ManuError, match="step 4, and only 3 are asked for"):
        run(tmp_path, num_steps=3)


def test_checkpoint_of_another_model_is_an_error(tmp_path):
    checkpoint.save(tmp_path / "step-00000002", {"model.other_D": np.zeros(3, np.float32)})
    with pytest.raises(ManuError, match="step-00000002: .*of another model"):
        run(tmp_path)


def test_half_written_checkpoint_is_not_gone_on_from(straight, tmp_path):
    (tmp_path / "step-00000004").mkdir()
    assert bits(run(tmp_path).model) == bits(straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapters", [None, pytest.param(LoraSection(rank=2, dropout=0.5), marks=pytest.mark.slow)]
)
def test_a_batch_that_does_not_divide_over_the_mesh_trains_as_on_one_device(tmp_path, adapters):
    """Rows of weight 0 fill it up; three of its samples are short of a batch."""
    changes = {"lora": adapters, "learning_rate": 1e-3, "optimizer": "adamw"}
    section = SECTION.model_copy(update=changes)
    assert section.batch_size == 4 and len(TEXT) % 4
    found = []
    for sizes in (None, (8, 1, 1)):
        loaded = tiny_llava.loaded()
        if sizes is not None:
            loaded = tiny_llava.on_mesh(parallel.make_mesh(*sizes))
        batches = trainer.batches_of(loaded, TEXT, section, seed=3, where="train")
        gradients = []
        for step in range(2):
            state = trainer.initial_state(loaded, section, jax.random.key(0))
            batch = batches.batch_at(step)
            assert len(batch.example_weights_B) == (8 if sizes else 4)
            settings = trainer.step_settings(section, loaded, cross_entropy_on_answers)
            with parallel.on_mesh(loaded.mesh):
                loss, gradient = trainer.loss_and_gradient(
                    state.weights,
                    parallel.put_batch(batch, loaded.mesh),
                    base=loaded.model,
                    key=jax.random.key(1),
                    settings=settings.gradient,
                    mesh=loaded.mesh,
                )
            gradients += [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)] + [float(loss)]
        found.append(gradients)
    # Sums over devices in another order: an error of their largest terms, also where they cancel.
    for one, meshed in zip(*found, strict=True):
        np.testing.assert_allclose(one, meshed, rtol=1e-4, atol=1e-6 * (1 + np.abs(one).max()))
    loaded = tiny_llava.on_mesh(parallel.make_mesh(8, 1, 1))
    run(tmp_path, loaded=loaded, section=section, num_steps=2)


@pytest.mark.slow
def test_half_precision_model_is_trained_in_float32_and_returned_as_it_was(tmp_path):
    loaded = tiny_llava.loaded()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), loaded.model)
    settings = trainer.step_settings(SECTION, loaded.replace_model(half), cross_entropy_on_answers)
    state = trainer.initial_state(loaded.replace_model(half), SECTION, jax.random.key(0))
    assert settings.gradient.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(state.weights)} == {jnp.dtype("float32")}
    trained = run(tmp_path, loaded=loaded.replace_model(half), num_steps=1).model
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("bfloat16")}
    changed = [a != b for a, b in zip(bits(trained.text), bits(half.text), strict=True)]
    assert any(changed)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", tiny_llava.MESHES)
def test_mesh_gives_the_weights_of_one_device(tmp_path, sizes):
    mesh = parallel.make_mesh(*sizes)
    section = SECTION.model_copy(update={"learning_rate": 1e-3, "batch_size": 8})
    one = run(tmp_path / "one", section=section, num_steps=2).model
    meshed = run(
        tmp_path / "mesh", loaded=tiny_llava.on_mesh(mesh), section=section, num_steps=2
    ).model
    expected = parallel.tree_shardings(meshed, mesh)
    for leaf, sharding in zip(jax.tree.leaves(meshed), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    # Adam divides by the gradient's own size: where that is near its rounding, steps of up to the
    # learning rate differ. All but a few weights agree far below one step.
    difference = np.concatenate(
        [np.abs(np.asarray(a) - np.asarray(b)).ravel()
         for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(meshed), strict=True)]
    )  # fmt: skip
    assert np.quantile(difference, 0.99) < 1e-5 and difference.max() < 4e-3


def test_warm_up_and_schedules():
    def rates(**changes):
        section = TrainSection(learning_rate=1.0, **changes)
        return [trainer.learning_rate(section, step, 10) for step in range(10)]

    assert rates(warmup=0.2, schedule="constant") == [0.5] + [1.0] * 9
    np.testing.assert_allclose(rates(warmup=0.0, schedule="linear"), 1 - np.arange(10) / 10)
    cosine = rates(warmup=0.2, schedule="cosine")
    np.testing.assert_allclose(
        cosine[2:], [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    )
    assert cosine[0] == 0.5
