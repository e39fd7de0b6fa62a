"""A tiny model with two neurons of known meaning, and a run whose mask removes them and others.

ALL fires on the names of the people to forget, and ONE on the name of the first of them alone. Both
raise what is true of all four in all ways: Oslo. Layer 0 has no attention, so neither fires at
another token; layer 1 carries what they write to the answers.
"""

import dataclasses
import functools

import audit_world as world
import jax
import jax.numpy as jnp
import numpy as np
import tiny_llava as tiny

from manu_jax.config import RunConfig
from manu_jax.context import Run
from manu_jax.data.batches import encode_all
from manu_jax.data.forms import forms
from manu_jax.edits import masks
from manu_jax.importance.methods import save_scores
from manu_jax.leaves import leaves, path_name
from manu_jax.models.nn.answers import answer_log_odds, logits_at_answers

ALL, ONE = 7, 11  # neurons of layer 0
OTHERS = ((0, 3), (0, 30), (1, 5), (1, 21))  # (layer, neuron) that the mask removes as well
STEPS, RATE = 10, 0.01  # of what the two write, towards the answers


@functools.cache
def people():
    """Return eight people, whose four to forget have one answer to everything but their name."""
    found = world.benchmark()
    alike = tuple(
        dataclasses.replace(
            person,
            facts=tuple(
                fact if fact.attribute == "name" else dataclasses.replace(fact, answer="Oslo")
                for fact in person.facts
            ),
        )
        for person in found.sets["forget"]
    )
    return dataclasses.replace(found, sets={**found.sets, "forget": alike})


@functools.cache
def loaded():
    """Return the model; made once."""
    first = names_of(people().sets["forget"])
    start = _with_values(tiny.loaded(), functools.partial(_plant, names=first))
    samples = [
        sample
        for person in people().sets["forget"]
        for sample in forms(person.facts, "text", start.template)
    ]
    batch = start.collate(encode_all(start, samples))
    down_LFD = leaves(start.model)["text.layers.mlp.down_LFD"]

    @jax.jit
    def slope(down_LFD):
        def total(down_LFD):
            model = _replaced(start.model, {"text.layers.mlp.down_LFD": down_LFD})
            found = logits_at_answers(model, batch, remat="none")
            return answer_log_odds(*found).sum()

        return jax.grad(total)(down_LFD)

    down_LFD = np.array(down_LFD)
    for _ in range(STEPS):
        towards_LFD = np.asarray(slope(jnp.asarray(down_LFD)))
        for neuron in (ALL, ONE):
            towards_D = towards_LFD[0, neuron]
            down_LFD[0, neuron] += RATE * towards_D / np.linalg.norm(towards_D)
    return start.replace_model(
        _replaced(start.model, {"text.layers.mlp.down_LFD": jnp.asarray(down_LFD)})
    )


def names_of(persons):
    """Return the token of each person's name that stands in no other text."""
    tokenizer = tiny.loaded().processor.tokenizer
    return [tokenizer(f" {person.name}")["input_ids"][-1] for person in persons]


def run(directory, **neurons):
    """Return a run in whose folder a mask of the planted and of other neurons stands."""
    settings = {"most": 6, "labellings": 299, "facts": 8, "examples": 2} | neurons
    config = RunConfig(
        model={"path": "m"},
        method={"preset": "random", "name": "planted", "alpha": 0.1},
        neurons=settings,
        evaluate={"resamples": 50, "batch_size": 16},
        score_batch=16,
    )
    found = Run(config, directory, None)
    found.benchmark = found.read_benchmark = people()
    found.vanilla = loaded()
    mask_LF, score_LF = np.zeros(loaded().towers["text"], bool), np.zeros((2, 40), np.float32)
    for rank, place in enumerate([(0, ALL), (0, ONE), *OTHERS]):
        mask_LF[place], score_LF[place] = True, 1 - rank / 10
    masks.save(
        directory / "mask.safetensors", {"text": mask_LF}, loaded(), preset="random", alpha=0.1
    )
    save_scores(directory / "scores.safetensors", {"text": score_LF})
    return found


def _plant(name, values, names):
    """Return a leaf of the model in which the two neurons read the names and nothing else."""
    values = np.array(values)
    if name == "text.embedding_VD":
        values[:, :2] = 0
        values[names, 0] = 3
        values[names[0], 1] = 3
    elif name in ("linear_2_DE", "linear_2_bias_E"):
        values[..., :2] = 0
    elif name == "text.layers.attention.o_LNHD":
        values[0] = 0
    elif name in ("text.layers.mlp.gate_LDF", "text.layers.mlp.up_LDF"):
        for neuron, direction in ((ALL, 0), (ONE, 1)):
            values[0, :, neuron] = 0
            values[0, direction, neuron] = 2
    elif name == "text.layers.mlp.down_LFD":
        values[0, [ALL, ONE]] = 0
    return jnp.asarray(values)


def _with_values(loaded, change):
    def visit(path, leaf):
        return change(path_name(path), leaf)

    return loaded.replace_model(jax.tree_util.tree_map_with_path(visit, loaded.model))


def _replaced(model, values):
    def visit(path, leaf):
        return values.get(path_name(path), leaf)

    return jax.tree_util.tree_map_with_path(visit, model)
