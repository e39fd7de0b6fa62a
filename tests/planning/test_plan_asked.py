"""What a plan counts where the data are there: a benchmark's own protocol, and own answers."""

import json

import published_world
import pytest
import tiny_llava

from manu_jax.config.run import validate_config
from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.own_answers import NEW_TOKENS
from manu_jax.models.loaded import save_pretrained
from manu_jax.planning import asking, page
from manu_jax.planning.chips import target_of
from manu_jax.planning.items import planned
from manu_jax.planning.world import Assumed, world_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny LLaVA as a folder with its processor."""
    folder = tmp_path_factory.mktemp("model") / "llava"
    save_pretrained(tiny_llava.loaded(), folder)
    return folder


def world_with(model, **values):
    config = {"model": {"path": str(model)}, "method": "random", "cache": None, "audit": "none"}
    return world_of(validate_config(config | values, "test"), target_of("gpu=h100:1"))


@pytest.fixture
def quiz(monkeypatch, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "quiz", published_world.FORMAT)
    published_world.write(tmp_path / "quiz")
    return {"benchmark": "quiz", "path": str(tmp_path / "quiz")}


def test_probes_of_a_protocol_are_counted_by_how_they_are_answered(model, quiz):
    world = world_with(model, data=quiz, evaluate={"batch_size": 4})
    people = published_world.FORGET + published_world.RETAIN
    found = world.data.probes
    assert {
        name: (len(kind.prompts), kind.new_tokens) for name, kind in found.published.items()
    } == {
        "answers of 5 tokens, image form": (people, 5),
        "answers of 5 tokens, text form": (people, 5),
        "drawn answers of 4 tokens, text form": (2 * people, 4),
    }
    drawn = found.published["drawn answers of 4 tokens, text form"].sampling
    assert (drawn.temperature, drawn.top_p) == (1.5, 0.9)
    given = {form: len(samples) for form, samples in found.given.items()}
    assert given == dict.fromkeys(("image", "text"), 4 * people)  # the truth and three others
    names = [item.name for item in asking.published_items(world)]
    assert names == [
        *(f"published: {name}" for name in found.published),
        *(f"published: likelihoods, {form} form" for form in given),
    ]
    item = next(one for one in asking.published_items(world) if "drawn" in one.name)
    step = item.make(world, None, None)
    # Vanilla and the mask; ten rows in batches of four.
    assert (step.calls, step.kwargs["how"].sampling.num_answers) == (2 * 3, 1)


@pytest.mark.parametrize("published", [False, {"max_items": 1, "new_tokens": 2}])
def test_of_a_protocol_as_much_is_planned_as_is_asked(model, quiz, published):
    world = world_with(model, data=quiz, evaluate={"published": published})
    found = world.data.probes.published
    expected = {} if not published else {"image": (3, 2), "text": (3, 2)}
    kept = {
        name.split()[-2]: (len(kind.prompts), kind.new_tokens)
        for name, kind in found.items()
        if "drawn" not in name
    }
    assert kept == expected  # of forget, retain and unseen one each


def test_without_data_a_protocol_is_assumed_like_the_evaluation(model, quiz):
    config = validate_config(
        {"model": {"path": str(model)}, "method": "random", "data": quiz, "cache": None}, "test"
    )
    world = world_of(config, target_of("gpu=h100:1"), Assumed(text=40, answers=4, samples=7))
    tokens = config.evaluate.new_tokens
    assert {name: len(kind.prompts) for name, kind in world.data.probes.published.items()} == {
        f"answers of {tokens} tokens, {form} form": 7 for form in ("image", "text")
    }


@pytest.fixture
def request_folder(tmp_path):
    """A request that names nobody to keep."""
    folder = tmp_path / "request"
    folder.mkdir()
    lines = [
        {"subject": name, "question": f"Where does {name} live?", "answer": place}
        for name, place in (("Ada Finch", "Lima"), ("Bo Crane", "Oslo"))
    ]
    (folder / "forget.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_own_answers_are_planned_where_nobody_to_keep_is_named(model, request_folder, tmp_path):
    data = {"benchmark": "folder", "path": str(request_folder)}
    world = world_with(model, data=data, output=str(tmp_path / "run"))
    assert not world.data.is_assumed, world.data.notes
    items = {item.name: item for item in planned(world)}
    name = next(name for name in items if name.startswith("vanilla's own answers"))
    assert (items[name].stage, items[name].kind) == ("train", "decode")
    step = items[name].make(world, None, None)
    assert step.kwargs["how"].new_tokens == NEW_TOKENS
    # What is kept is as long as an answer may be.
    kept = [one for samples in world.data.keep.values() for one in samples]
    assert kept and max(one.num_answers for one in kept) >= NEW_TOKENS
    assert "judge" in " ".join(page.ASSUMPTIONS)
