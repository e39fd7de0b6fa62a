"""RMU against PyTorch, and the hidden states that it reads."""

import jax
import numpy as np
import pytest
import torch
import torch_peer
from test_unlearner import section
from torch_peer import FORGET, KEEP, KEEP_WEIGHT, hidden

from manu_jax.training.recipes import RECIPES
from manu_jax.training.representation import random_direction
from manu_jax.training.unlearner import layer_of
from manu_jax.types import ManuError

KEY = jax.random.key(3)


@pytest.mark.parametrize("layer", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_rmu_is_that_of_pytorch(layer):
    direction = torch.tensor(np.asarray(random_direction(KEY, 16), np.float64))

    def expected(peer, vanilla):
        aim = torch.cat(hidden(peer, FORGET, layer)) - 3.0 * direction
        pairs = (torch.cat(hidden(one, KEEP, layer)) for one in (peer, vanilla))
        found, before = pairs
        kept = (found - before.detach()).square().mean()
        return 0.5 * aim.square().mean() + KEEP_WEIGHT * kept

    gradient = torch_peer.check(
        "rmu", expected, key=KEY, layer=layer, coefficient=3.0, forget_weight=0.5
    )
    # What lies above the layer does not move.
    assert not np.asarray(gradient.text.layers.mlp.down_LFD[layer + 1 :]).any()
    assert not np.asarray(gradient.text.head_DV[...]).any()


def test_the_direction_has_length_one_and_both_signs():
    one, other = (np.asarray(random_direction(jax.random.key(seed), 64)) for seed in (0, 1))
    assert np.linalg.norm(one) == pytest.approx(1, rel=1e-6)
    assert (one < 0).any() and (one > 0).any() and (one != other).all()


def test_the_layer_lies_at_the_authors_depth_unless_the_config_gives_one():
    recipe = RECIPES["rmu"]
    assert [layer_of(section("rmu"), recipe, count) for count in (2, 28, 32)] == [0, 6, 7]
    assert layer_of(section("rmu", layer=1), recipe, 2) == 1
    with pytest.raises(ManuError, match=r"unlearn \(x\)\.layer: 2, .* 2 layers\. .* 0 to 1"):
        layer_of(section("rmu", layer=2), recipe, 2)
