"""Programs of a run, as it first calls them, and of a plan, to be compared as text."""

import jax
import jax.numpy as jnp
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.planning.chips import Chip, Target

MESH = (2, 2, 2)


class Seen(Exception):
    """The run has come to the step that is looked at."""


def target():
    """Return what a plan is made for: eight devices of this machine."""
    return Target("devices=8", Chip("CPU", 1e12, 2**32, 1e10, 1e9), 8, tuple(jax.devices()))


def on_mesh():
    """Return the tiny LLaVA on the mesh, as a run has it."""
    return tiny_llava.on_mesh(parallel.make_mesh(*MESH))


def lowered(step, world):
    """Return the program of a step of the plan, lowered."""
    with parallel.on_mesh(world.place.mesh):
        return step.function.lower(*step.args, **step.kwargs).as_text()


def first_program(monkeypatch, module, name, action):
    """Return the lowered text of the first call of a module's step that an action makes."""
    step, seen = getattr(module, name), []

    def lowered(*arguments, **settings):
        seen.append(step.lower(*arguments, **settings).as_text())
        raise Seen

    with monkeypatch.context() as patch, pytest.raises(Seen):
        patch.setattr(module, name, lowered)
        action()
    return seen[0]


def without_compiling(weights, data, *, settings, mesh, **_):
    """Stand for the gradient: zeros where the run's gradients lie."""
    zeros = jax.tree.map(jnp.zeros_like, weights)
    return jnp.float32(0), jax.device_put(zeros, parallel.tree_shardings(zeros, mesh))
