import types

import jax
import pytest

from manu_jax.leaves import shapes
from manu_jax.models.nn.mlp import (
    Mlp,
    TowerMlp,
    matrix_rows,
    mlp_table,
    neuron_leaves,
    row_leaves,
)

L, D, E, F = 2, 3, 5, 7


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_table_of_matrices_describes_the_module(gated, bias):
    sizes = {"num_layers": L, "num_neurons": F, "gated": gated, "bias": bias}
    config = types.SimpleNamespace(num_layers=L, width=E, num_neurons=F, activation="silu")
    module = jax.eval_shape(
        lambda key: Mlp(key, config, input_width=D, gated=gated, bias=bias), jax.random.key(0)
    )
    leaves = {f"mlp.{name}": shape for name, shape in shapes(module).items()}
    mlp = TowerMlp("mlp", width=E, **sizes)
    # Files have the leaf's axes without L, the output row first.
    assert {entry.path: entry.axes for entry in mlp_table(mlp, "")} == {
        path: path.rpartition("_")[2][:0:-1] for path in leaves
    }
    rows = row_leaves(mlp)
    assert {path for parts in rows.values() for path, _ in parts.values()} == set(leaves)
    for matrix, (num_layers, num_rows) in matrix_rows(mlp).items():
        for path, axis in rows[matrix].values():
            assert (leaves[path][0], leaves[path][axis]) == (num_layers, num_rows)
    of_neurons = dict(neuron_leaves(mlp).values())
    assert {path for path, shape in leaves.items() if F in shape} == set(of_neurons)
    assert all(leaves[path][axis] == F for path, axis in of_neurons.items())
