"""The lines of docs/edits.md for PyTorch, run as they stand, against what `edit apply` writes."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax import edit as command
from manu_jax.edits import masks
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.low_rank import LowRank
from manu_jax.edits.masks import MaskEdit
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.models.loaded import load, save_pretrained

PAGE = Path(__file__).parent.parent / "docs" / "edits.md"
BLOCK = re.compile(r"^<!-- test: (\w+) -->\n```python\n(.*?)^```", re.M | re.S)
MOST_LINES = 10
BLOCKS = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
WHOLE = ("mask", "gates", "neurons", "weights")  # bit for bit


def drawn(edit):
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.3), edit)


def mask():
    random = np.random.default_rng(0)
    return {tower: random.random(shape) < 0.3 for tower, shape in tiny.loaded().towers.items()}


def gates():
    random = np.random.default_rng(1)
    return {
        tower: random.uniform(0, 1.5, shape).astype(np.float32)
        for tower, shape in tiny.loaded().towers.items()
    }


def written(loaded):
    places = ((3, 0, 39), (7, 8, 9))
    return WrittenNeurons.new(loaded, layers=(1, 0), places=places, count=3, key=jax.random.key(0))


def low_rank():
    arrays = {"down_LFR": jnp.zeros((2, 40, 3)), "up_LRD": jnp.zeros((2, 3, 16))}
    gate = {"down_LDR": jnp.zeros((2, 16, 3)), "up_LRF": jnp.zeros((2, 3, 40))}
    return LowRank({"text.layers.mlp.down": arrays, "text.layers.mlp.gate": gate}, scale=0.5)


MAKERS = {
    "mask": lambda loaded: MaskEdit.of(mask()),
    "gates": lambda loaded: GateEdit(gates()),
    "neurons": lambda loaded: drawn(written(loaded)),
    "weights": lambda loaded: drawn(NewWeights.of(loaded, ("text.layers.mlp",), layers=(1,))),
    "low_rank": lambda loaded: drawn(low_rank()),
}


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory):
    """{dtype: a folder that holds a model as `vanilla/`}; the towers' MLPs are all wider than D."""
    folders = {}
    for dtype in ("float32", "bfloat16"):
        folders[dtype] = tmp_path_factory.mktemp(dtype)
        loaded = tiny.loaded()
        model = jax.tree.map(lambda leaf, kind=dtype: leaf.astype(kind), loaded.model)
        save_pretrained(loaded.replace_model(model), folders[dtype] / "vanilla")
    return folders


def states(folder, lines):
    """Return the weights of the model that the lines make, run in the folder."""
    import torch

    names: dict = {}
    exec(compile("\n".join(lines), "docs/edits.md", "exec"), names)  # noqa: S102
    return {
        name: value.to(torch.float32).numpy() for name, value in names["model"].state_dict().items()
    }


def test_every_block_is_ten_lines_at_most():
    assert set(BLOCKS) == {"start", *MAKERS}
    for name, block in BLOCKS.items():
        lines = [line for line in block.splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_lines_make_the_model_that_the_command_writes(name, dtype, vanilla, monkeypatch):
    folder = vanilla[dtype]
    monkeypatch.chdir(folder)
    loaded = load("vanilla")
    file = "mask.safetensors" if name == "mask" else "edit.safetensors"
    if name == "mask" and dtype == "float32":  # as a run writes it
        masks.save(file, mask(), loaded, preset="paper", alpha=0.3)
    else:
        MAKERS[name](loaded).save(file, loaded, {"name": name})
    output = f"by-command-{name}"
    assert command.main(["apply", file, "--model", "vanilla", "--output", output]) == 0
    found = states(folder, [BLOCKS["start"], BLOCKS[name]])
    before = states(folder, [BLOCKS["start"]])
    wanted = states(folder, [BLOCKS["start"].replace('"vanilla"', f'"{output}"')])
    assert any((wanted[key] != before[key]).any() for key in before)
    for key, value in wanted.items():
        if name in WHOLE:
            np.testing.assert_array_equal(found[key], value, err_msg=key)
        else:  # a sum of three products, in float32; rounded to bfloat16 it may differ by one bit
            tolerance = 1e-6 if dtype == "float32" else 2.0**-7
            np.testing.assert_allclose(found[key], value, rtol=tolerance, atol=1e-6, err_msg=key)


def test_the_lines_import_nothing_of_this_package():
    assert "manu_jax" not in "".join(BLOCKS.values())
    code = "".join(f"compile({block!r}, 'page', 'exec')\n" for block in BLOCKS.values())
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
