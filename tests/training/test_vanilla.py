import functools

import jax
import pytest

from manu_jax.config import ModelSection, TextSize, TowerSection, TrainSection, VisionSize
from manu_jax.data import mllmu, synthetic
from manu_jax.data.prompts import question_prompt
from manu_jax.training import vanilla

train_models = functools.partial(vanilla.train_models, question_prompt=question_prompt)

SIZES = ModelSection(
    vision=VisionSize(
        image_size=56, patch_size=28, width=8, num_layers=2, num_heads=1, num_neurons=8
    ),
    text=TextSize(
        width=8, num_layers=1, num_heads=1, num_key_heads=1, num_neurons=8, vocabulary=400
    ),
)  # fmt: skip
SECTION = TrainSection(steps=3, base_steps=5, batch_size=4, facts_per_document=6)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "data"
    synthetic.write(path, num_people=8, num_celebrities=3, num_general=8, seed=2)
    return mllmu.load_benchmark(path, forget=15)


@pytest.fixture
def trainings(monkeypatch):
    """What `train` is called with, instead of training."""
    calls = {}

    def train(loaded, samples, section, *, num_steps, directory, seed, description):
        calls[directory.name] = (loaded, samples, num_steps)
        return loaded.replace_model(jax.tree.map(lambda leaf: leaf + 1, loaded.model))

    monkeypatch.setattr(vanilla, "train", train)
    return calls


def names(people):
    return {person.name for person in people}


def test_only_the_vanilla_model_sees_the_people_to_forget(benchmark, trainings, tmp_path):
    train_models(benchmark, SIZES, SECTION, directory=tmp_path, seed=0)
    assert {name: call[2] for name, call in trainings.items()} == {
        "base": 5, "vanilla": 3, "retrained": 3,
    }  # fmt: skip
    forget, others = benchmark.sets["forget"], benchmark.sets["retain"]
    images = {id(image): person.name for person in forget for image in person.images}
    transformed = {id(i) for person in benchmark.sets["test"] for i in person.images}
    for name, (_, samples, _) in trainings.items():
        text = "\n".join(sample.text for sample in samples)
        seen = {images[id(i)] for sample in samples for i in sample.images if id(i) in images}
        expected = names(forget) if name == "vanilla" else set()
        assert {person for person in names(forget) if person in text} == expected
        assert seen == expected
        assert all(person in text for person in names(others))
        assert not any(id(i) in transformed for sample in samples for i in sample.images)
    # Both go on from the same base.
    assert trainings["vanilla"][0] is trainings["retrained"][0]
    assert trainings["vanilla"][0] is not trainings["base"][0]


def test_the_retrained_models_tower_never_saw_the_people_to_forget(
    benchmark, trainings, tmp_path, monkeypatch
):
    towers = {}

    def train_tower(loaded, people, section, *, num_steps, directory, seed):
        towers[directory.name] = (loaded, people, num_steps)
        return loaded.replace_model(jax.tree.map(lambda leaf: leaf + 1, loaded.model))

    monkeypatch.setattr(vanilla, "train_tower", train_tower)
    section = SECTION.model_copy(update={"tower": TowerSection(steps=7, more_steps=2)})
    train_models(benchmark, SIZES, section, directory=tmp_path, seed=0)
    assert {name: call[2] for name, call in towers.items()} == {
        "base_tower": 7, "vanilla_tower": 2, "retrained_tower": 2,
    }  # fmt: skip
    forget, others = names(benchmark.sets["forget"]), names(benchmark.sets["retain"])
    for name, (_, people, _) in towers.items():
        assert names(people) & forget == (forget if name == "vanilla_tower" else set())
        assert names(people) >= others
    # Both towers go on from that of the base, and each model is taught around its own.
    assert towers["vanilla_tower"][0] is towers["retrained_tower"][0]
    assert trainings["vanilla"][0] is not trainings["retrained"][0]


def test_models_that_stand_are_not_trained_again(benchmark, trainings, tmp_path):
    train_models(benchmark, SIZES, SECTION, directory=tmp_path, seed=0)
    assert (tmp_path / "vanilla/config.json").exists()
    trainings.clear()
    train_models(benchmark, SIZES, SECTION, directory=tmp_path, seed=0)
    assert not trainings


def test_base_of_a_killed_run_is_not_trained_again(benchmark, trainings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(vanilla, "train", killed_at("vanilla", vanilla.train))
        with pytest.raises(KeyboardInterrupt):
            train_models(benchmark, SIZES, SECTION, directory=tmp_path, seed=0)
    assert set(trainings) == {"base"}
    trainings.clear()
    train_models(benchmark, SIZES, SECTION, directory=tmp_path, seed=0)
    assert set(trainings) == {"vanilla", "retrained"}
    assert not (tmp_path / vanilla.CHECKPOINTS).exists()


def killed_at(name, train):
    """`train`, but stopped as by Ctrl-C at the training `name`."""

    def training(*arguments, directory, **settings):
        if directory.name == name:
            raise KeyboardInterrupt
        return train(*arguments, directory=directory, **settings)

    return training


def test_given_model_is_the_base_and_learns_the_people_alone(benchmark, trainings, tmp_path):
    train_models(benchmark, SIZES, SECTION, directory=tmp_path, seed=0)
    given = SIZES.model_copy(update={"path": str(tmp_path / "vanilla")})
    trainings.clear()
    train_models(benchmark, given, SECTION, directory=tmp_path / "tuned", seed=0)
    assert set(trainings) == {"vanilla", "retrained"}
    text = "\n".join(sample.text for sample in trainings["retrained"][1])
    assert any(person in text for person in names(benchmark.sets["retain"]))
    assert not any(person in text for person in names(benchmark.sets["celebrity"]))


def test_tokenizer_is_trained_on_questions_of_every_task(benchmark):
    texts = list(vanilla.tokenizer_texts(benchmark, question_prompt))
    joined = "\n".join(texts)
    assert "ONE letter" in joined and "[Blank]" in joined and "in ENGLISH" in joined
    assert all(name in joined for name in names(benchmark.sets["forget"]))


def test_each_training_says_how_often_it_goes_through_its_documents(
    benchmark, trainings, tmp_path, caplog
):
    with caplog.at_level("INFO"):
        train_models(benchmark, SIZES, SECTION, directory=tmp_path, seed=0)
    count = len({sample.key + sample.text for sample in trainings["base"][1]})
    told = [line for line in caplog.messages if "passes" in line]
    assert told[0] == (
        f"training base: 5 steps of 4 documents, {20 / count:.1f} passes over {count} documents"
    )
    assert [line.split(":")[0] for line in told[1:]] == ["training vanilla", "training retrained"]
