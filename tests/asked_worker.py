"""What test_processes.py runs as one of two processes: general ability, and depth.

A run of a tiny model has neither: its vocabulary is too small, and its layers are too few.
"""

import dataclasses
import logging
import types
from typing import Any

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.evaluation.analyses import ability
from manu_jax.evaluation.audit import depth
from manu_jax.models.loaded import Loaded
from manu_jax.types import MODALITIES, VANILLA

SMALL = {
    "LEAST_VOCABULARY": 1,
    "LEAST_CONTEXT": 1,
    "LEAST_RIGHT": 0.0,
    "NEW_TOKENS": 5,
    "COMPLETIONS": (("this person is a", "baker"), ("What about", "chess"), ("It is", "Rome")),
    "CHAT": ("Where?", "What about this person?", "Who?"),
    "english_passages": lambda: ("Where does this person live? In Oslo.", "What about the answer"),
}
CLOSE = 1e-4  # sums over devices in another order


def main() -> None:
    parallel.join()
    for name, value in SMALL.items():
        setattr(ability, name, value)
    mesh = parallel.make_mesh(2, 2, 2)
    alone, other = tiny_llava.loaded(), damaged(tiny_llava.loaded())
    together = placed(alone, mesh), placed(other, mesh)
    check_rows(able(alone, other), able(*together))
    for modality in MODALITIES:
        samples = tiny_llava.samples(modality)
        expected_NL, found_NL = (
            depth.layer_losses(*pair, samples, batch_size=4) for pair in ((alone, other), together)
        )
        assert np.abs(expected_NL).min(axis=0).max() > 100 * CLOSE
        np.testing.assert_allclose(found_NL, expected_NL, atol=CLOSE)
    logging.warning("as expected")


def damaged(loaded: Loaded) -> Loaded:
    """Return a model with noise on all weights."""
    random = np.random.default_rng(1)

    def damage(leaf: Any) -> jax.Array:
        return jax.numpy.asarray(leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32))

    return loaded.replace_model(jax.tree.map(damage, loaded.model))


def placed(loaded: Loaded, mesh: Any) -> Loaded:
    """Return a model on the mesh, whose devices are of both processes."""
    on_host = jax.tree.map(np.asarray, loaded.model)
    model = jax.device_put(on_host, parallel.tree_shardings(loaded.model, mesh))
    return dataclasses.replace(loaded, model=model, mesh=mesh)


def able(vanilla: Loaded, other: Loaded) -> list[ability.Ability]:
    """Return the rows of general ability of both models."""
    run: Any = types.SimpleNamespace(
        vanilla=vanilla,
        models=lambda: {"other": lambda: other},
        config=types.SimpleNamespace(evaluate=types.SimpleNamespace(batch_size=8)),
    )
    evaluated: Any = types.SimpleNamespace(
        run=run, models=(VANILLA, "other"), bootstrap={"resamples": 20, "seed": 0}
    )
    return list(ability.measure(evaluated))


def check_rows(expected: list[ability.Ability], found: list[ability.Ability]) -> None:
    """Numbers are close, and all else is the same."""
    assert {row.measure for row in expected} == {*ability.MEANS, ability.ONE_CHAT}
    assert any(row.value and row.measure == ability.CHAT_KL for row in expected)
    for here, there in zip(expected, found, strict=True):
        for name, value in dataclasses.asdict(here).items():
            close = pytest.approx(value, abs=CLOSE) if isinstance(value, float) else value
            assert getattr(there, name) == close, (name, here, there)


if __name__ == "__main__":
    main()
