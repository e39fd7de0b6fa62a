import dataclasses

import jax
import numpy as np
import tiny_llava as tiny
from PIL import Image

from manu_jax.fingerprint import samples_hash, weights_hash
from manu_jax.leaves import leaves
from manu_jax.parallel import make_mesh


def test_weights_hash_sees_every_bit_and_no_mesh():
    tree = {"a_DF": np.arange(8, dtype=np.float32).reshape(2, 4), "b": np.ones(3, np.float16)}
    plain = weights_hash(tree)
    assert weights_hash({name: leaf.copy() for name, leaf in tree.items()}) == plain
    flipped = tree["a_DF"].copy()
    flipped.view(np.uint32)[1, 2] ^= 1
    swapped = tree["a_DF"][:, ::-1].copy()
    others = [{**tree, "a_DF": flipped}, {**tree, "a_DF": swapped}, {**tree, "c": np.zeros(1)}]
    assert len({plain, *map(weights_hash, others)}) == 4
    assert weights_hash(tiny.on_mesh(make_mesh(2, 2, 2)).model) == weights_hash(tiny.loaded().model)
    assert jax.tree.leaves(tiny.loaded().model)[0].dtype == np.float32


def test_samples_hash_sees_texts_marks_pixels_and_order():
    samples = tiny.samples("image")
    first = samples[0]
    pixels = np.asarray(first.images[0]).copy()
    pixels[3, 3, 0] ^= 1
    changed = [
        samples[::-1],
        (dataclasses.replace(first, key="other"), *samples[1:]),
        (dataclasses.replace(first, images=(Image.fromarray(pixels),)), *samples[1:]),
        (dataclasses.replace(first, segments=((first.text, True),)), *samples[1:]),
    ]
    assert samples_hash(tiny.samples("image")) == samples_hash(samples)
    assert len({samples_hash(samples), *map(samples_hash, changed)}) == 5


def test_the_hash_of_a_model_is_the_one_that_masks_made_before_hold():
    model = tiny.loaded().model
    assert any("vision.unused_layers." in name for name in leaves(model))
    # Of this model at 627eb90, where these leaves were called "vision.unrun."
    assert weights_hash(model) == "7af332241928ccb8"
