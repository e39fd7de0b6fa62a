"""Methods without a mask in the report: those that train, and those that make another edit."""

import json
import shutil

import jax
import pytest
import tiny_llava

from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.report import edits
from manu_jax.report.render import render
from manu_jax.report.results import load_results
from manu_jax.types import ManuError

METHOD = {"name": "learned", "kind": "trained", "objective": "npo", "lora": {"alpha": 16.0}}


@pytest.fixture
def folder(run_folder, tmp_path):
    """The folder of a run whose first method trains, and has no mask."""
    directory = shutil.copytree(run_folder, tmp_path / "run")
    (directory / "mask.safetensors").unlink()
    path = directory / "results.json"
    content = json.loads(path.read_text())
    content["config"]["method"] = METHOD
    content["config"]["unlearn"] = [{"name": "P", "kind": "trained", "objective": "system_prompt"}]
    path.write_text(json.dumps(content))
    return directory


def neurons(loaded):
    return WrittenNeurons.new(loaded, layers=[0], count=2, key=jax.random.key(0))


def test_a_first_method_that_trains_needs_no_mask(folder):
    page = render(folder).read_text()
    assert "<dt>Method</dt><dd>learned</dd>" in page
    assert "<dt>Trained by</dt><dd>npo</dd>" in page
    assert "<dt>learned</dt><dd>Trained by npo. Nothing that it wrote stands apart" in page
    assert "The method learned removes" not in page and "<dt>Neurons removed</dt>" not in page
    assert "in percent. With official-code" in page  # the masks of the others
    assert edits.trained(load_results(folder)) == {"learned": "npo"}


def test_the_edit_of_the_first_method_is_described_and_whether_it_can_be_removed(folder):
    loaded = tiny_llava.loaded()
    edit = neurons(loaded)
    edit.save(folder / "edit.safetensors", loaded, {})
    other = NewWeights.of(loaded, ["text.layers.mlp.down"])
    other.save(folder / "methods" / "paper" / "edit.safetensors", loaded, {})
    page = render(folder).read_text()
    assert f"<dt>Changed</dt><dd>{'; '.join(edit.describe())}</dd>" in page
    (start,) = [i for i in range(len(page)) if page.startswith("<dt>learned</dt><dd>", i)]
    assert "and can be found and removed: the knowledge is still in the weights" in page[start:]
    (start,) = [i for i in range(len(page)) if page.startswith("<dt>paper</dt><dd>", i)]
    assert "Nothing that it wrote stands apart" in page[start : start + 300]


def test_without_any_mask_the_section_has_another_title(folder):
    shutil.rmtree(folder / "methods")
    page = render(folder).read_text()
    assert "<h2>What was changed</h2>" in page and "pruned neurons sit" not in page


def test_damaged_edits_are_named(folder):
    places = [folder / "edit.safetensors", folder / "methods" / "paper" / "edit.safetensors"]
    for place in places:
        place.write_bytes(bytes(40))
    with pytest.raises(ManuError) as error:
        render(folder)
    assert all(str(place) in str(error.value) for place in places)
