"""The command on edits: every verb, on a Hugging Face folder and on Orbax's, and its refusals."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax import edit as command
from manu_jax.edits import files, masks
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.fingerprint import weights_hash
from manu_jax.leaves import leaves
from manu_jax.models.loaded import load, save_checkpoint, save_pretrained

WRITERS = {"hugging-face": save_pretrained, "orbax": save_checkpoint}


def mask_of(seed, share=0.3):
    random = np.random.default_rng(seed)
    return {tower: random.random(shape) < share for tower, shape in tiny.loaded().towers.items()}


def neurons(places=None):
    new = WrittenNeurons.new(
        tiny.loaded(), layers=(1,), places=places, count=2, key=jax.random.key(0)
    )
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape) * 0.3, new)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a model in both forms, two masks, gates, and two further edits."""
    folder, loaded = tmp_path_factory.mktemp("room"), tiny.loaded()
    for name, write in WRITERS.items():
        write(loaded, folder / name)
    loaded = load(folder / "hugging-face")
    for name, seed in (("a", 0), ("b", 1)):
        masks.save(folder / f"{name}.mask", mask_of(seed), loaded, preset=name, alpha=0.3)
    ones = {"text": np.full((2, 40), 0.5, np.float32)}
    GateEdit(ones).save(folder / "gates", loaded, {"name": "halved"})
    neurons().save(folder / "appended", loaded, {"name": "more"})
    neurons(((3, 4),)).save(folder / "written", loaded, {"name": "suppress"})
    return folder


@pytest.fixture
def error_of(capsys):
    def message_of(*arguments):
        assert command.main([str(argument) for argument in arguments]) == 1
        message = capsys.readouterr().err
        assert "Traceback" not in message and message.count("error: ") == 1
        return message

    return message_of


def run(*arguments):
    assert command.main([str(argument) for argument in arguments]) == 0


def weights(folder):
    return {name: np.asarray(leaf) for name, leaf in leaves(load(folder).model).items()}


def check_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.tobytes() == wanted[name].tobytes(), name


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.mask", "hugging-face"),
        pytest.param("appended", "hugging-face", marks=pytest.mark.slow),
        ("appended", "orbax"),
        *(
            pytest.param(name, form, marks=pytest.mark.slow)
            for name in ("gates", "written")
            for form in WRITERS
        ),
    ],
)
def test_apply_and_undo_give_the_original_bit_for_bit(name, form, room, tmp_path, capsys):
    original, edited = room / form, tmp_path / "edited"
    side = tmp_path / "side.safetensors"
    run("apply", room / name, "--model", original, "--output", edited, "--keep-removed", side)
    assert (edited / "checkpoint").exists() == (form == "orbax")
    wanted = files.read(room / name).edit.apply(load(original))
    check_equal(weights(edited), {k: np.asarray(v) for k, v in leaves(wanted.model).items()})
    assert f"the model {weights_hash(wanted.model)}" in capsys.readouterr().out
    for number, source in enumerate((("--original", original), ("--removed", side))):
        again = tmp_path / f"again-{number}"
        run("undo", room / name, "--model", edited, "--output", again, *source)
        check_equal(weights(again), weights(original))
        assert (again / "checkpoint").exists() == (form == "orbax")
        if form == "hugging-face":
            for file in ("model.safetensors", "config.json", "tokenizer.json"):
                assert (again / file).read_bytes() == (original / file).read_bytes()


def test_describe_says_what_is_changed_and_of_what_it_was_made(room, capsys):
    run("describe", room / "a.mask", room / "written")
    printed = capsys.readouterr().out
    assert "mask, made for the model" in printed and "text: pruned" in printed
    assert "vision: pruned" in printed and "preset: a" in printed and "alpha: 0.3" in printed
    assert "text: wrote 2 of 80 neurons (2.50 %)" in printed and "name: suppress" in printed
    assert printed.count("stands apart in the weights") == 1


def test_union_and_difference_are_those_of_the_masks(room, tmp_path, capsys):
    both, left = tmp_path / "both", tmp_path / "left"
    run("union", room / "a.mask", room / "b.mask", "--output", both)
    run("difference", both, room / "a.mask", "--output", left)
    a, b = mask_of(0), mask_of(1)
    joined, only_b = (files.read(path).edit.as_mask() for path in (both, left))
    for tower in a:
        np.testing.assert_array_equal(joined[tower], a[tower] | b[tower])
        np.testing.assert_array_equal(only_b[tower], b[tower] & ~a[tower])
    assert "text: pruned" in capsys.readouterr().out
    sources = files.read(both).made_from["union"]
    assert [one["file"] for one in sources] == ["a.mask", "b.mask"]
    model = room / "hugging-face"
    run("apply", both, "--model", model, "--output", tmp_path / "one")
    wanted = masks.fold(masks.fold(load(model), a), b)
    check_equal(
        weights(tmp_path / "one"), {k: np.asarray(v) for k, v in leaves(wanted.model).items()}
    )


def test_the_order_of_a_union_changes_nothing(room):
    a, b = (files.read(room / name) for name in ("a.mask", "b.mask"))
    for tower, gone in files.union([a, b]).as_mask().items():
        np.testing.assert_array_equal(gone, files.union([b, a]).as_mask()[tower])


def test_gates_are_multiplied_and_a_mask_among_them_is_zero(room):
    gates, mask = (files.read(room / name) for name in ("gates", "a.mask"))
    found = files.union([gates, mask, gates])
    assert found.kind == "gates"
    np.testing.assert_array_equal(found.gates["text"], np.where(mask_of(0)["text"], 0, 0.25))
    np.testing.assert_array_equal(found.gates["vision"], 1.0 - mask_of(0)["vision"])


def test_diff_of_two_masks_counts_what_they_share(room, tmp_path, capsys):
    run("diff", room / "a.mask", room / "b.mask")
    printed = capsys.readouterr().out
    a, b = mask_of(0)["text"], mask_of(1)["text"]
    assert f"text: {(a & b).sum()} neurons in both, {(a & ~b).sum()} in the first alone" in printed
    assert "preset: a | b" in printed
    run("diff", room / "written", room / "written")
    assert "the same, bit by bit" in capsys.readouterr().out
    run("diff", room / "written", room / "gates")
    assert "first: text: wrote" in capsys.readouterr().out


def test_diff_of_two_models_is_the_edit_between_them(room, tmp_path, capsys):
    original, edited = room / "hugging-face", tmp_path / "edited"
    run("apply", room / "a.mask", "--model", original, "--output", edited)
    run("diff", original, edited, "--output", tmp_path / "edit")
    assert "text.layers.mlp.down: new values" in capsys.readouterr().out
    run("apply", tmp_path / "edit", "--model", original, "--output", tmp_path / "again")
    check_equal(weights(tmp_path / "again"), weights(edited))
    run("undo", tmp_path / "edit", "--model", edited, "--original", original, "--output",
        tmp_path / "back")  # fmt: skip
    check_equal(weights(tmp_path / "back"), weights(original))


def test_what_does_not_fit_is_refused_and_nothing_is_written(room, tmp_path, error_of):
    model, out = room / "hugging-face", tmp_path / "out"
    run("apply", room / "a.mask", "--model", model, "--output", tmp_path / "other")
    other, to = tmp_path / "other", ("--output", out)
    assert "was made for the model" in error_of("apply", room / "b.mask", "--model", other, *to)
    assert "was made for the model" in error_of("apply", room / "gates", "--model", other, *to)
    text = error_of("apply", room / "gates", "--model", model, "--dtype", "bfloat16", *to)
    assert "was made for the model" in text
    undo = ("undo", "--model", model, *to, "--original", model)
    assert "its weights have other shapes" in error_of(*undo, room / "appended")
    run("apply", room / "written", "--model", model, "--output", tmp_path / "written",
        "--keep-removed", tmp_path / "side")  # fmt: skip
    text = error_of("undo", room / "a.mask", "--model", tmp_path / "written", *to, "--original",
                    model)  # fmt: skip
    assert "it was changed otherwise as well" in text
    text = error_of("undo", room / "written", "--model", other, *to, "--removed", tmp_path / "side")
    assert "Give the model that the edit was applied to" in text
    assert "no such file" in error_of("describe", tmp_path / "none")
    assert "damaged or cut short" in error_of("describe", model / "config.json")
    assert "expected a file of format" in error_of("describe", model / "model.safetensors")
    assert "these write weights" in error_of("union", room / "a.mask", room / "written", *to)
    assert "only masks have one" in error_of("difference", room / "a.mask", room / "gates", *to)
    assert "give two edits" in error_of("diff", model, room / "a.mask", *to)
    assert "the same, bit by bit" in error_of("diff", model, model, *to)
    assert not out.exists()


def test_edits_of_different_models_are_not_joined(room, tmp_path, error_of):
    loaded = load(room / "hugging-face")
    changed = loaded.replace_model(jax.tree.map(lambda leaf: leaf * 2, loaded.model))
    masks.save(tmp_path / "c.mask", mask_of(2), changed, preset="c", alpha=0.3)
    text = error_of("union", room / "a.mask", tmp_path / "c.mask", "--output", tmp_path / "out")
    assert "made for different models" in text and "c.mask" in text


def test_a_folder_of_others_is_not_replaced(room, tmp_path, error_of):
    (tmp_path / "notes.txt").write_text("mine")
    model = room / "hugging-face"
    text = error_of("apply", room / "a.mask", "--model", model, "--output", tmp_path)
    assert "notes.txt" in text and (tmp_path / "notes.txt").read_text() == "mine"


def test_models_and_edits_may_be_in_a_store(room):
    pytest.importorskip("upath", reason="the extra `cloud` is not installed")
    import fsspec
    import stores_servers

    from manu_jax.folder import expand_path

    fsspec.filesystem("memory").store.clear()
    place = "memory://bucket/edits"
    stores_servers.put(room, expand_path(place))
    model, mask = f"{place}/hugging-face", f"{place}/a.mask"
    run("describe", mask)
    run("union", mask, f"{place}/b.mask", "--output", f"{place}/both")
    run("apply", f"{place}/both", "--model", model, "--output", f"{place}/less",
        "--keep-removed", f"{place}/side")  # fmt: skip
    run("diff", model, f"{place}/less", "--output", f"{place}/between")
    run("undo", f"{place}/both", "--model", f"{place}/less", "--removed", f"{place}/side",
        "--output", f"{place}/again")  # fmt: skip
    assert weights_hash(load(f"{place}/again").model) == weights_hash(load(model).model)
    fsspec.filesystem("memory").store.clear()


def refused(capsys, *arguments):
    """Return the one message of a command that has to fail."""
    assert command.main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture
def own(room, tmp_path):
    """A model and edits that a test may lose."""
    shutil.copytree(room / "hugging-face", tmp_path / "model")
    for name in ("a.mask", "b.mask"):
        shutil.copy(room / name, tmp_path / name)
    return tmp_path


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "apply a.mask --model model --output new --keep-removed a.mask",
            "is read or written here",
        ),
        (
            "apply a.mask --model model --output new --keep-removed model/side",
            "model is read or wr",
        ),
        (
            "apply a.mask --model model --output new --keep-removed new/side",
            "new is read or written",
        ),
        ("apply a.mask --model model --output new --keep-removed b.mask", "no such side file"),
        ("apply a.mask --model model --output model", "model is read for it, and would be"),
        ("apply a.mask --model model --output model/new", "model is read for it, and would be"),
        ("undo a.mask --model model --output model --original model", "model is read for it"),
        ("union a.mask b.mask --output a.mask", "a.mask is read or written here as well"),
        ("union a.mask b.mask --output model/config.json", "is there already, and is no edit"),
        ("difference a.mask b.mask --output model/model.safetensors", "and is no edit"),
        ("union a.mask b.mask --output model", "it is a folder"),
        ("diff model model --output model/model.safetensors", "model is read or written here"),
    ],
)
def test_nothing_that_is_read_or_of_another_kind_is_replaced(
    own, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(own)
    before = contents(own)
    assert said in refused(capsys, *arguments.split())
    assert contents(own) == before


def test_an_earlier_file_of_the_same_kind_is_replaced(own, monkeypatch):
    monkeypatch.chdir(own)
    for _ in range(2):
        run("union", "a.mask", "b.mask", "--output", "both")
        run("apply", "both", "--model", "model", "--output", "new", "--keep-removed", "side")
