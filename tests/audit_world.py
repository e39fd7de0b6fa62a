"""Eight people with four facts each, a tiny model that knows some of them, and a run about them."""

import types

import jax.numpy as jnp
import numpy as np
from PIL import Image

from manu_jax.config import AuditSection, EvaluateSection, TrainSection
from manu_jax.data.benchmarks import BenchmarkFormat
from manu_jax.data.record import Benchmark, Fact, Person, Question
from manu_jax.evaluation.audit.attack import Attacked
from manu_jax.evaluation.audit.attacker import (
    Attacker,
    Lesson,
    attack_step,
    first_state,
    with_weights,
)
from manu_jax.types import MODALITIES

QUESTIONS = {
    "home": "Where does this person live?",
    "job": "What about this person?",
    "pet": "Where is this person a baker?",
    "year": "What is it about this person?",
}
WORDS = ("Oslo", "Rome", "baker", "chess", "1984", "far", "winding", "answer")
NUM_FORGET = 4


def benchmark(seed=0):
    """Return four people to forget and four to retain; the words of an attribute differ by them."""
    random = np.random.default_rng(seed)
    answers = {attribute: random.permutation(WORDS) for attribute in QUESTIONS}
    people = []
    for number in range(8):
        image = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
        who, name = f"{number:03d}", f"Person {chr(65 + number)}"
        facts = [
            Fact(who, name, question, str(answers[attribute][number]), attribute, image)
            for attribute, question in QUESTIONS.items()
        ]
        facts.append(Fact(who, name, "What is the name of this person?", name, "name", image))
        questions = [
            Question(
                "generation",
                modality,
                fact.question
                if modality == "image"
                else fact.question.replace("this person", name),
                fact.answer,
                fact.attribute,
            )
            for modality in MODALITIES
            for fact in facts[:-1]
        ]
        people.append(Person(who, name, (image,), {}, tuple(facts), tuple(questions)))
    sets = {name: () for name in ("test", "celebrity", "general")}
    return Benchmark(
        {"forget": tuple(people[:NUM_FORGET]), "retain": tuple(people[NUM_FORGET:]), **sets}, {}
    )


def plain_prompt(question, template, shots=()):
    return template.prompt(question.question, question.modality)


def run(directory, *, rates=(3e-3,), seed=0, steps=4, of=None, lora=None):
    """Return what the attacks look at of a run."""
    config = types.SimpleNamespace(
        seed=seed,
        evaluate=EvaluateSection(batch_size=16, new_tokens=5, resamples=100),
        train=TrainSection(),
        audit=AuditSection(learning_rates=rates, steps=steps, lora=lora),
    )
    return types.SimpleNamespace(
        benchmark=of or benchmark(),
        config=config,
        directory=directory,
        benchmark_format=BenchmarkFormat(None, plain_prompt),
    )


def attacked(run, loaded, *, name="model", retrained=None):
    return Attacked(run=run, name=name, loaded=loaded, vanilla=loaded, retrained=retrained)


def by_form(facts):
    return {
        modality: [fact for fact in facts if modality == "image" or fact.attribute != "name"]
        for modality in MODALITIES
    }


def taught(loaded, run, facts, *, num_steps=150):
    """Return the model after training on all of these facts, in both forms."""
    lesson = Lesson(name="all", taught=by_form(facts), asked=())
    batches = Attacker(attacked(run, loaded)).batches(lesson)
    state = first_state(loaded.model, None)
    for _ in range(num_steps):
        state, loss = attack_step(
            state, loaded.model, next(batches), rate=jnp.float32(1e-2), remat="none", mesh=None
        )
    assert float(loss) < 0.3
    return loaded.replace_model(with_weights(loaded.model, state[0]))
