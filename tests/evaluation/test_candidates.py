import functools

import jax
import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax import parallel
from manu_jax.data.batches import encode_all
from manu_jax.edits import masks
from manu_jax.evaluation import candidates as candidates_module
from manu_jax.evaluation.candidates import mean_log_likelihoods, recalled, shares_right
from manu_jax.evaluation.generate import greedy
from manu_jax.evaluation.likelihood import log_likelihoods, share_right
from manu_jax.leaves import path_name
from manu_jax.types import ManuError, Sample


def random_masks(count, towers=("text", "vision"), share=0.15, seed=0):
    random = np.random.default_rng(seed)
    known = tiny.loaded().towers
    return [
        {tower: random.random(known[tower]) < share * number for tower in towers}
        for number in range(count)
    ]


def said_samples():
    """Questions in both forms whose answers are what the model says by itself, or not."""
    found = []
    for modality in ("image", "text"):
        samples = tiny.samples(modality)
        asked = [Sample(sample.segments[:1], sample.images, sample.key) for sample in samples]
        answers = greedy(tiny.loaded(), asked, new_tokens=2, batch_size=4)
        found += [
            Sample((*sample.segments, (answer, True)), sample.images, sample.key)
            for sample, answer in zip(asked, answers, strict=True)
            if answer
        ]
        found += samples[:2]
    return found


def one_at_a_time(samples, chosen):
    return np.stack(
        [
            log_likelihoods(masks.fold(tiny.loaded(), mask), samples, batch_size=4).recalled_N
            for mask in chosen
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("towers", [("text", "vision"), ("text",), ("vision",)])
def test_candidates_are_recalled_as_their_folded_models(towers):
    samples, chosen = said_samples(), random_masks(5, towers)
    found_KN = recalled(tiny.loaded(), samples, chosen, batch_size=4)
    np.testing.assert_array_equal(found_KN, one_at_a_time(samples, chosen))
    # The masks differ in what they leave; otherwise the test would see nothing.
    assert len({row.tobytes() for row in found_KN}) > 1
    found_K = shares_right(tiny.loaded(), samples, chosen, batch_size=4)
    for share, mask in zip(found_K, chosen, strict=True):
        assert share == share_right(masks.fold(tiny.loaded(), mask), samples, 4)


def test_rows_of_matrices_are_folded_and_stand_in_their_places():
    rows = tiny.loaded().family.matrix_rows(tiny.loaded().config)
    of_rows = {"text.down_proj": np.arange(rows["text.down_proj"][1])[None] % 3 == 0}
    of_rows["text.down_proj"] = np.repeat(of_rows["text.down_proj"], rows["text.down_proj"][0], 0)
    first, second = random_masks(2, share=0.3)
    chosen, samples = [second, of_rows, first, {}], said_samples()
    found_KN = recalled(tiny.loaded(), samples, chosen, batch_size=4)
    np.testing.assert_array_equal(found_KN, one_at_a_time(samples, chosen))


def test_gates_of_any_size_are_factors_of_the_neurons():
    random = np.random.default_rng(0)
    known = tiny.loaded().towers
    chosen = [
        {tower: random.uniform(1 - width, 1 + width, known[tower]) for tower in known}
        for width in (0.1, 0.3, 0.6, 1)
    ]
    del chosen[0]["vision"]

    def scaled(path, leaf, gates):
        tower, _, name = path_name(path).partition(".")
        if not name.endswith("mlp.down_LFD") or "unused" in name or tower not in gates:
            return leaf
        return leaf * gates[tower].astype(np.float32)[..., None]

    samples = said_samples()
    found_KN = recalled(tiny.loaded(), samples, chosen, batch_size=4)
    for found_N, gates in zip(found_KN, chosen, strict=True):
        model = jax.tree_util.tree_map_with_path(
            functools.partial(scaled, gates=gates), tiny.loaded().model
        )
        loaded = tiny.loaded().replace_model(model)
        expected = log_likelihoods(loaded, samples, batch_size=4).recalled_N
        np.testing.assert_array_equal(found_N, expected)
    assert len({row.tobytes() for row in found_KN}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_a_mesh_recalls_what_one_device_does(sizes):
    samples, chosen = said_samples(), random_masks(3)
    alone = recalled(tiny.loaded(), samples, chosen, batch_size=8)
    loaded = tiny.on_mesh(parallel.make_mesh(*sizes))
    np.testing.assert_array_equal(recalled(loaded, samples, chosen, batch_size=8), alone)


@pytest.mark.slow
def test_a_small_budget_asks_fewer_at_once_and_changes_nothing(monkeypatch):
    samples, chosen = said_samples(), random_masks(5)
    whole = recalled(tiny.loaded(), samples, chosen, batch_size=4)
    sizes, real = [], candidates_module._Asked._programs

    def noted(self, size):
        programs = real(self, size)
        sizes.append((size, max(program.num_bytes for program in programs.values())))
        return programs

    monkeypatch.setattr(candidates_module._Asked, "_programs", noted)
    encoded = encode_all(tiny.loaded(), samples)
    asked = candidates_module._Asked(tiny.loaded(), encoded, chosen, 4)
    np.testing.assert_array_equal(asked.recalled(budget=10**9), whole)
    ((size, needed),) = sizes
    assert size == 5
    sizes.clear()
    np.testing.assert_array_equal(asked.recalled(budget=needed / 2), whole)
    assert sizes[0] == (5, needed) and sizes[-1][1] <= needed / 2
    np.testing.assert_array_equal(asked.recalled(budget=1), whole)
    assert sizes[-1][0] == 1  # one at a time, however little there is


def test_images_are_encoded_once_where_no_image_gate_differs(monkeypatch):
    counts, real = [], candidates_module._features

    def counted(model, images, gates):
        counts.append({tower: len(gate) for tower, gate in gates.items()})
        return real(model, images, gates)

    monkeypatch.setattr(candidates_module, "_features", counted)
    samples = tiny.samples("image")
    recalled(tiny.loaded(), samples, random_masks(3, ("text",)), batch_size=4)
    assert counts == [{}]
    counts.clear()
    same = [{**mask, **random_masks(2, ("vision",))[1]} for mask in random_masks(3, ("text",))]
    recalled(tiny.loaded(), samples, same, batch_size=4)
    assert counts == [{"vision": 1}]
    counts.clear()
    recalled(tiny.loaded(), samples, random_masks(3), batch_size=4)
    assert counts == [{"vision": 3}]


def test_faults_are_named():
    samples = tiny.samples("text")
    with pytest.raises(ManuError, match="shape"):
        recalled(tiny.loaded(), samples, [{"text": np.zeros((1, 2), bool)}], batch_size=4)
    for ask in (recalled, mean_log_likelihoods):
        for candidate, message in (
            ({"audio": np.ones((2, 4), bool)}, r'"audio" is not in the model \(it has text, '),
            # As numbers, a mask would say the contrary.
            ({"text": random_masks(1)[0]["text"].astype(int)}, 'got "text" of int64'),
        ):
            with pytest.raises(ManuError, match=message):
                ask(tiny.loaded(), samples, [candidate], batch_size=4)
        with pytest.raises(ManuError, match="expected a list of masks or gates, got one"):
            ask(tiny.loaded(), samples, random_masks(1)[0], batch_size=4)
    with pytest.raises(ManuError, match="only whole neurons have gates"):
        rows = {"text.up_proj": np.ones((2, 40), bool)}
        mean_log_likelihoods(tiny.loaded(), samples, [rows], batch_size=4)
    with pytest.raises(ManuError, match="no samples"):
        shares_right(tiny.loaded(), [], random_masks(1), batch_size=4)
    broken = tiny.loaded().replace_model(jax.tree.map(lambda x: x * np.nan, tiny.loaded().model))
    with pytest.raises(ManuError, match="not finite"):
        recalled(broken, samples, random_masks(2), batch_size=4)
