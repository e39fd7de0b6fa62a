"""Gates in the weights do what gates in the forward pass do."""

import numpy as np
import pytest
import tiny_llava as tiny
from test_edits import gates, host, logits, mask

from manu_jax.edits import masks
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.masks import MaskEdit, edit_of
from manu_jax.types import ManuError


def gated(edit, modality):
    return tiny.logits(tiny.loaded().model, tiny.batch(modality), edit.as_gates())


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("edit", [GateEdit(gates()), MaskEdit.of(mask())], ids=["gates", "mask"])
def test_an_applied_edit_equals_its_gates_in_the_forward_pass(edit, modality):
    found = logits(edit.apply(tiny.loaded()).model, modality)
    np.testing.assert_allclose(found, gated(edit, modality), atol=1e-4)  # g·W is rounded, not g·z
    assert np.abs(found - logits(tiny.loaded().model, modality)).max() > 0.01


def test_the_gates_of_a_mask_are_one_minus_it():
    removed = mask()
    for tower, gate_LF in MaskEdit.of(removed).as_gates().items():
        np.testing.assert_array_equal(gate_LF, 1.0 - removed[tower])
    for tower, back_LF in MaskEdit.of(removed).as_mask().items():
        assert back_LF.dtype == bool
        np.testing.assert_array_equal(back_LF, removed[tower])
    rows = tiny.loaded().family.matrix_rows(tiny.loaded().config)["text.up_proj"]
    with pytest.raises(ManuError, match="removes rows of text.up_proj; only whole neurons"):
        MaskEdit.of({"text.up_proj": np.zeros(rows, bool)}).as_gates()


def test_only_what_reads_a_gated_neuron_changes():
    loaded, given = tiny.loaded(), {"text": gates()["text"]}
    before, after = host(loaded), host(GateEdit(given).apply(loaded))
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed == {"text.layers.mlp.down_LFD"}
    (name,) = changed
    np.testing.assert_array_equal(after[name], before[name] * given["text"][..., None])


def test_fold_takes_masks_and_gates_and_nothing_else():
    loaded, given = tiny.loaded(), gates()
    folded = masks.fold(loaded, given)
    for name, value in host(GateEdit(given).apply(loaded)).items():
        np.testing.assert_array_equal(host(folded)[name], value)
    for name, value in host(masks.unfold(folded, loaded, given)).items():
        np.testing.assert_array_equal(value, host(loaded)[name])
    assert isinstance(edit_of(mask()), MaskEdit)
    with pytest.raises(ManuError, match=r'expected a mask .* "text" of int64, "vision" of bool'):
        masks.fold(loaded, {**mask(), "text": mask()["text"].astype(int)})
