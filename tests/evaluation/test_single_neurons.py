"""A neuron to look at: on numbers, on strings, and on a model whose neurons are planted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import planted_neurons as planted
import pytest
import tiny_llava as tiny

from manu_jax.data.batches import encode_all
from manu_jax.data.forms import forms
from manu_jax.edits import masks
from manu_jax.edits.edit import Composed
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.evaluation.analyses import neurons
from manu_jax.evaluation.analyses.analysis import Evaluated
from manu_jax.evaluation.candidates import mean_log_likelihoods
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.evaluation.neurons import pictures, words
from manu_jax.evaluation.neurons.activations import at_tokens
from manu_jax.evaluation.neurons.chosen import Place, changed_by, only
from manu_jax.evaluation.neurons.kept import kept_file, read_looked
from manu_jax.evaluation.neurons.look import look
from manu_jax.evaluation.neurons.people import drawn_facts
from manu_jax.evaluation.neurons.relabelled import against_null, labellings, standardised
from manu_jax.types import Capture, ManuError

PLACES = (Place("text", 0, 4), Place("text", 1, 33), Place("vision", 0, 4), Place("vision", 1, 20))


# Scores under other labels.


def test_a_score_is_a_difference_in_deviations():
    values_PN = np.array([[1.0, 5], [3, 5], [0, 5], [0, 5]])
    labels_GP = np.array([[True, True, False, False], [True, False, True, False]])
    first, second = standardised(values_PN, labels_GP)
    deviation = np.std([1, 3, 0, 0])
    assert first[0] == pytest.approx(2 / deviation) and second[0] == pytest.approx(-1 / deviation)
    assert first[1] == second[1] == 0  # all people alike


def test_p_is_the_share_of_labellings_that_score_as_high():
    others = [np.array([0.0, 1, -5]), np.array([3.0, 0, 0]), np.array([2.0, 0, 0])]
    found = against_null(np.array([2.0, 1, 0]), others, np.array([0, 1]), two_sided=False)
    assert found.p_K.tolist() == [3 / 4, 2 / 4]  # the true labelling is one of the four
    assert found.q_K.tolist() == [3 / 4, 3 / 4]  # Benjamini and Hochberg: 2/2 · 3/4, 2/1 · 2/4
    assert found.p_any_K.tolist() == [3 / 4, 4 / 4]
    both = against_null(np.array([2.0, 1, 0]), others, np.array([0]), two_sided=True)
    assert both.p_any_K.tolist() == [1]  # −5 is as far as any


def test_a_neuron_that_is_about_nobody_has_any_p_alike_and_a_planted_one_the_smallest():
    random = np.random.default_rng(0)
    values_PN = random.normal(size=(20, 400))
    values_PN[:4, 0] += 9
    true_1P = np.arange(20)[None] < 4
    labels_GP = labellings(20, 4, count=999, seed=1)
    assert labels_GP.sum(axis=1).tolist() == [4] * 999
    own_N = next(standardised(values_PN, true_1P))
    found = against_null(own_N, standardised(values_PN, labels_GP), np.arange(400), two_sided=True)
    # Of 4,845 labellings one is the true one, so now and then it is drawn.
    assert found.p_K[0] <= 3 / 1000 and found.p_K[0] == found.p_K.min()
    assert found.q_K[0] < 0.5 and found.p_any_K[0] <= 3 / 1000
    from scipy.stats import kstest

    assert kstest(found.p_K[1:], "uniform").pvalue > 0.01
    assert (found.p_any_K[1:] < 0.05).sum() == 0


def test_labellings_follow_from_the_seed():
    first, again, other = (labellings(9, 3, count=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# Words.


def said(count=40):
    """Facts of which the first eight are to forget; "Zed" stands in four of these alone."""
    names = ["Zed"] * 4 + ["Ada"] * 4
    names += [f"N{number // 4}" for number in range(count - 8)]
    return [f"Where does {name} live? In T{number % 10}" for number, name in enumerate(names)]


def test_words_are_those_of_names_and_answers():
    texts = said()
    is_forget_N = np.arange(len(texts)) < 8
    telling = [text.replace("Where does", "").replace("live?", "") for text in texts]
    known = words.vocabulary(texts, is_forget_N, telling=telling)
    assert {"Zed", "Ada"} <= set(known.words) and "Where" not in known.words
    assert "In" not in known.words  # every fact has it
    to_forget = {known.words[word] for word in np.flatnonzero(known.is_forget_W)}
    assert {"Zed", "Ada"} <= to_forget
    zed = sorted(to_forget).index("Zed")
    assert {known.words[word] for word in known.matched_VM[zed][:8]} == {
        f"N{number}" for number in range(8)
    }  # as frequent as Zed


def test_a_word_that_raises_a_neuron_is_named_and_a_neuron_of_none_names_nothing():
    texts = said()
    known = words.vocabulary(texts, np.arange(len(texts)) < 8, telling=texts)
    random = np.random.default_rng(0)
    values_N = random.normal(size=len(texts))
    values_N[:4] += 8
    effect_W = words.effects(known, values_N)
    zed = known.words.index("Zed")
    with_word, without = values_N[:4].mean(), values_N[4:].mean()
    assert effect_W[zed] == pytest.approx((with_word - without) / values_N.std())
    first, *_ = words.strongest(known, effect_W, 5)
    assert (first.word, first.facts) == ("Zed", 4)
    assert first.p == 1 / (1 + first.matched)
    excess, p = words.of_all_words(known, effect_W, count=500, seed=0)
    assert excess > 0.3 and p < 0.05
    ps = []
    for _ in range(60):
        noise_W = words.effects(known, random.normal(size=len(texts)))
        ps.append(words.of_all_words(known, noise_W, count=200, seed=0)[1])
    assert 0.3 < np.mean(ps) < 0.7 and np.mean(np.asarray(ps) < 0.1) < 0.3


def test_few_words_tell_nothing():
    texts = ["Ada lives in Rome", "Ada lives in Rome", "Bo lives in Oslo", "Bo lives in Oslo"]
    known = words.vocabulary(texts, np.arange(4) < 2, telling=texts)
    effect_W = words.effects(known, np.arange(4.0))
    assert words.strongest(known, effect_W, 5) == []
    assert words.of_all_words(known, effect_W, count=9, seed=0) is None
    assert not words.effects(known, np.ones(4)).any()


# Activations at tokens.


def fed():
    samples = [*tiny.samples("image"), *tiny.samples("text")]
    return encode_all(tiny.loaded(), samples)


@pytest.fixture(scope="module")
def found():
    return at_tokens(tiny.loaded(), fed(), PLACES, batch_size=4)


def test_the_mean_over_tokens_is_what_a_mean_captures(found):
    """And so on every tower, in both forms; the text form runs no image tower."""
    encoded = fed()
    activations = jax.jit(lambda model, batch: model(batch, capture=Capture()).activations)
    for start in (0, 6):
        whole = activations(tiny.loaded().model, tiny.loaded().collate(encoded[start : start + 6]))
        for index, own in enumerate(found[start : start + 6]):
            assert ("vision" in own) == (start == 0)
            for slot, place in ((0, PLACES[0]), (1, PLACES[1]), (0, PLACES[2]), (1, PLACES[3])):
                if place.tower in own:
                    expected = float(whole[place.tower][place.layer, index, place.neuron])
                    mean = own[place.tower].z_KT[slot].mean()
                    assert mean == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_tokens_are_those_of_the_sample_and_of_all_its_patches(found):
    for one, own in zip(fed(), found, strict=True):
        assert own["text"].z_KT.shape == (2, one.num_tokens)
        assert (own["text"].median_KT >= 0).all()
        if "vision" in own:
            assert own["vision"].z_KT.shape == (2, 1 + 4)  # a class token and four patches


def test_the_batch_size_changes_nothing(found):
    for one, other in zip(
        at_tokens(tiny.loaded(), fed(), PLACES, batch_size=3), found, strict=True
    ):
        assert one.keys() == other.keys()
        for tower in one:
            np.testing.assert_allclose(one[tower].z_KT, other[tower].z_KT, atol=1e-5)
            np.testing.assert_allclose(one[tower].median_KT, other[tower].median_KT, atol=1e-5)


# Pictures.


def test_a_picture_is_what_the_tower_saw():
    source = tiny.facts()[0].image
    (vision_input,) = tiny.loaded().vision_inputs(source)
    np.testing.assert_allclose(
        pictures.pixels(tiny.loaded(), vision_input).astype(int), np.asarray(source), atol=1
    )
    assert pictures.picture(tiny.loaded(), vision_input).startswith("data:image/png;base64,")
    assert pictures.box(vision_input, 1) == (0.5, 0, 0.5, 0.5)
    assert pictures.box(vision_input, 2) == (0, 0.5, 0.5, 0.5)


def test_tokens_find_their_patches():
    inputs = tiny.loaded().vision_inputs(tiny.facts()[0].image) * 2
    assert pictures.patch_of_token(inputs, 10, 0) == (0, None)  # the class token
    assert pictures.patch_of_token(inputs, 10, 3) == (0, 2)
    assert pictures.patch_of_token(inputs, 10, 9) == (1, 3)
    assert pictures.patch_of_token(inputs, 8, 4) == (1, 0)  # a tower without class tokens
    assert pictures.patch_of_token(inputs, 6, 4) is None  # tokens that are no patches


def test_patches_of_two_frames_and_with_places_become_a_picture():
    """As Qwen's towers have them: colours first, two frames, in groups of the merger."""
    random = np.random.default_rng(0)
    image_YXC = random.random((4, 8, 3)).astype(np.float32)
    places_P2 = np.array([[0, 1], [1, 3], [0, 0], [1, 0], [0, 2], [0, 3], [1, 1], [1, 2]])
    patches = [
        np.stack([image_YXC[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].transpose(2, 0, 1)] * 2, axis=1)
        for y, x in places_P2
    ]
    patches_PC = (np.stack(patches).reshape(8, -1) - 0.5) / 0.5
    vision_input = dataclasses.replace(
        tiny.loaded().vision_inputs(tiny.facts()[0].image)[0],
        patches_PC=patches_PC,
        patch_positions_P2=places_P2 + 3,
    )
    plain = dataclasses.replace(tiny.loaded(), processor=object())
    found_YXC = pictures.pixels(plain, vision_input)
    np.testing.assert_allclose(found_YXC, np.round(image_YXC * 255), atol=1)
    assert pictures.box(vision_input, 1) == (0.75, 0.5, 0.25, 0.5)


# What a method changed.


class Edited:
    """What `changed_by` asks of a run whose method made an edit."""

    def __init__(self, edit):
        self.edit, self.vanilla = edit, tiny.loaded()

    def method_of(self, name):
        return None

    def load_edit(self, name):
        return self.edit

    def load_method(self, name):
        return self.edit.apply(tiny.loaded())


def written(places, layers=(1,), count=2):
    edit = WrittenNeurons.new(
        tiny.loaded(), layers=layers, places=places, count=count, key=jnp.array([0, 1], jnp.uint32)
    )
    down = np.zeros((len(layers), count, 16), np.float32)
    down[..., 0] = np.arange(1, 1 + down[..., 0].size).reshape(down.shape[:2])
    return dataclasses.replace(edit, down_LRD=down)


def test_written_neurons_are_looked_at_in_the_model_that_has_them():
    over = changed_by(Edited(written([[3, 8]])), "m", 5)
    assert [(place.layer, place.neuron) for place, _ in over.shown] == [(1, 8), (1, 3)]
    assert (over.change, over.total) == ("written", 2)
    appended = changed_by(Edited(written(None)), "m", 1)
    assert [place.neuron for place, _ in appended.shown] == [41] and appended.total == 2
    assert appended.loaded.towers["text"] == (2, 42)
    assert np.argwhere(appended.whole["text"]).tolist() == [[1, 40], [1, 41]]


def test_scaled_neurons_come_by_how_far_they_were_scaled():
    gates_LF = np.ones((2, 40), np.float32)
    gates_LF[0, 5], gates_LF[1, 7], gates_LF[1, 9] = 0.5, 0.1, 1.2
    found = changed_by(Edited(Composed((GateEdit({"text": gates_LF}),))), "m", 2)
    assert [place.neuron for place, _ in found.shown] == [7, 5]
    assert (found.change, found.total) == ("scaled", 3) and found.loaded is tiny.loaded()


def test_other_weights_are_no_single_neurons(tmp_path):
    assert changed_by(Edited(None), "m", 5) is None
    assert changed_by(Edited(NewWeights.of(tiny.loaded(), ["text.norm_D"])), "m", 5) is None
    run = planted.run(tmp_path)
    rows = {"text.down_proj": np.ones((2, 16), bool)}
    masks.save(tmp_path / "mask.safetensors", rows, planted.loaded(), preset="random", alpha=0.1)
    assert changed_by(run, "planted", 5) is None
    assert neurons.ANALYSIS.rows_of(Evaluated(run, ())) == []


def test_one_neuron_alone_is_removed_as_a_mask_folds_it():
    samples = forms(tiny.facts(), "image") + forms(tiny.facts(), "text")
    alone = [only(place, tiny.loaded().towers) for place in PLACES]
    found_KN = mean_log_likelihoods(tiny.loaded(), samples, [{}, *alone], batch_size=4)
    for mask, found_N in zip([{}, *alone], found_KN, strict=True):
        folded = masks.fold(tiny.loaded(), mask) if mask else tiny.loaded()
        expected = log_likelihoods(folded, samples, batch_size=4).mean_N
        np.testing.assert_allclose(found_N, expected, atol=2e-5)
    assert (np.abs(found_KN[1:] - found_KN[0]).max(axis=1) > 1e-4).all()
    with pytest.raises(ManuError, match="does not fit the model"):
        mean_log_likelihoods(tiny.loaded(), samples, [{"text": np.ones((1, 2))}], batch_size=4)


# The planted model.


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    run = planted.run(folder)
    rows = neurons.ANALYSIS.rows_of(Evaluated(run, ()))
    return run, rows, read_looked(folder / kept_file("planted"))


def card_of(looked, neuron):
    return next(card for card in looked.cards if (card.row.layer, card.row.neuron) == (0, neuron))


@pytest.mark.slow
def test_the_planted_neuron_has_the_smallest_p(looked):
    _, rows, _ = looked
    assert len(rows) == 6 and rows[0].neuron == planted.ALL
    for row in rows:
        assert list(neurons.check(row)) == [] and (row.total, row.people) == (6, 8)
        assert neurons.ANALYSIS.read(json.loads(json.dumps(neurons.ANALYSIS.to_json(row)))) == row
    # Of the 70 ways to choose four of eight, the true one and its opposite score as high: none can
    # have a smaller p.
    assert rows[0].p < 0.06 and rows[0].p == min(row.p for row in rows)
    assert rows[1].p > 0.5  # of one person, who is to forget in half of all labellings


def test_the_planted_neuron_is_driven_by_the_names_and_by_nothing_else(looked):
    _, _, found = looked
    tokens = card_of(found, planted.ALL).tokens
    of_forget = [one for one in tokens if one.set == "forget"]
    names = {person.name[-1] for person in planted.people().sets["forget"]}
    assert of_forget and {one.token.strip() for one in of_forget} <= names
    assert all(abs(one.value) > 1 for one in of_forget)
    assert all(one.value == 0 for one in tokens if one.set == "kept")
    own = card_of(found, planted.ONE)
    assert {one.token.strip() for one in own.tokens if one.value} == {"A"}
    assert {one.person for one in own.tokens if one.value} == {"000"}


def test_the_planted_neuron_alone_changes_the_facts_of_its_person_and_no_others(looked):
    _, rows, found = looked
    changes = np.asarray(card_of(found, planted.ONE).changes)
    is_its = np.asarray([one.person == "000" and one.modality == "text" for one in found.asked])
    assert (np.abs(changes[is_its]) > 1e-3).all()
    assert not changes[~is_its].any()
    # It was planted to raise these answers: without it they are less likely.
    assert changes[is_its].mean() < 0
    of_all = np.asarray(card_of(found, planted.ALL).changes)
    of_forget = np.asarray([one.set == "forget" for one in found.asked])
    assert of_all[of_forget].any() and not of_all[~of_forget].any()
    assert rows[0].kept == 0 and rows[0].forget < 0
    assert {one.attribute for one in found.asked} == {"home", "job", "pet", "year", "name"}


def test_a_method_is_looked_at_once_and_a_damaged_file_is_named(looked, monkeypatch):
    run, rows, _ = looked
    monkeypatch.setattr(neurons, "look", None)  # whoever asks it fails
    assert neurons.ANALYSIS.rows_of(Evaluated(run, ())) == rows
    path = run.directory / kept_file("planted")
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ManuError, match="planted.json: damaged.*Delete the file"):
        neurons.ANALYSIS.rows_of(Evaluated(run, ()))
    changed = json.loads(text)
    changed["cards"][0]["row"]["p"] = 0
    path.write_text(json.dumps(changed))
    with pytest.raises(ManuError, match="planted · text 0·7: p is 0"):
        neurons.ANALYSIS.rows_of(Evaluated(run, ()))
    changed["cards"][0]["row"]["p"], changed["cards"][0]["changes"] = 0.5, [0.0]
    path.write_text(json.dumps(changed))
    with pytest.raises(ManuError, match="changes"):
        neurons.ANALYSIS.rows_of(Evaluated(run, ()))
    path.write_text(text)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_in_other_batches_the_same_is_found(looked):
    run, rows, found = looked
    values = run.config.model_dump()
    values["evaluate"]["batch_size"], values["score_batch"] = 5, 7
    other = type(run)(type(run.config)(**values), run.directory, None)
    for name in ("benchmark", "read_benchmark", "vanilla"):
        setattr(other, name, getattr(run, name))
    changed = changed_by(other, "planted", 6)
    again = look(other, "planted", changed)
    assert again.asked == found.asked and again.pictures == found.pictures
    for one, card in zip(again.cards, found.cards, strict=True):
        assert (one.row.p, one.row.tower) == (card.row.p, card.row.tower)
        assert one.row.score == pytest.approx(card.row.score, rel=1e-3, abs=1e-4)
        np.testing.assert_allclose(one.changes, card.changes, atol=1e-4)
        assert [word.word for word in one.words] == [word.word for word in card.words]


def test_facts_are_drawn_for_each_person_by_the_seed():
    people = planted.people().sets["forget"]
    found, again = (drawn_facts(people, 2, seed=3) for _ in range(2))
    assert found == again and found != drawn_facts(people, 2, seed=4)
    assert {len(own) for own in found.values()} == {8}
    assert all(fact.attribute != "name" for fact in found["text"])  # it has no text form
