"""Buckets, padding, order and the share of a process, with an encoder that counts letters."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manu_jax.data.batches import Batches, bucket_lengths, encode_all
from manu_jax.types import Batch, Encoded, Images, ManuError, VisionInput, question_sample


class LetterEncoder:
    """One token per letter; an image is two patches of its number."""

    def tokenise_ahead(self, samples):
        pass

    def encode(self, sample, *, digests=None):
        if "!" in sample.text:
            raise ManuError(f"the letter ! in {sample.text!r}")
        tokens = np.frombuffer(sample.text.encode(), np.uint8).astype(np.int32)
        vision_inputs = tuple(
            VisionInput(np.full((2, 3), number, np.float32), None, 1) for number in sample.images
        )
        return Encoded(
            tokens, np.ones(len(tokens), np.float32), -np.ones_like(tokens), vision_inputs
        )

    def collate(self, encoded, shape=None):
        assert max(item.num_answers for item in encoded) <= shape.num_answers
        batch_size, length = shape.batch_size, shape.length
        tokens = np.zeros((batch_size, length), np.int32)
        mask = np.zeros((batch_size, length), bool)
        patches = None
        if shape.num_images is not None:
            patches = np.zeros((batch_size, shape.num_images, shape.num_patches, 3), np.float32)
        for b, item in enumerate(encoded):
            where = slice(0, item.num_tokens)
            if shape.padding_side == "left":
                where = slice(length - item.num_tokens, length)
            tokens[b, where], mask[b, where] = item.token_ids_T, True
            for i, vision_input in enumerate(item.vision_inputs):
                patches[b, i] = vision_input.patches_PC
        images = None
        if patches is not None:
            images = Images(
                mask_BI=patches.any((2, 3)),
                feature_index_BT=np.full_like(tokens, -1),
                patches_BIPC=patches,
            )
        return Batch(
            token_ids_BT=tokens,
            attention_mask_BT=mask,
            positions_BT=mask.cumsum(1),
            loss_weights_BT=mask * 1.0,
            example_weights_B=(np.arange(batch_size) < len(encoded)).astype(np.float32),
            images=images,
        )


ENCODER = LetterEncoder()


def encode_lengths(lengths):
    """Samples of these lengths, each of its own letter; every second has an image."""
    return encode_all(
        ENCODER,
        [
            question_sample(chr(33 + 1 + i % 90) * n, "", (i + 1,) if i % 2 == 0 else ())
            for i, n in enumerate(lengths)
        ],
    )


def same(one, other):
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.array_equal(a, b) if a is not None else b is None for a, b in pairs)


LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=25)


@given(LENGTHS, st.integers(1, 5))
def test_bucket_lengths_hold_every_sample_and_pad_the_least(lengths, most):
    buckets = bucket_lengths(lengths, 32, most)
    assert len(buckets) <= most and list(buckets) == sorted(set(buckets))
    assert all(length % 32 == 0 for length in buckets) and max(lengths) <= max(buckets)

    def padded(edges):
        return sum(min(edge for edge in edges if edge >= n) for n in lengths)

    rounded = sorted({-(-n // 32) * 32 for n in lengths})
    choices = (
        (*some, rounded[-1])
        for k in range(min(most, len(rounded)))
        for some in itertools.combinations(rounded[:-1], k)
    )
    assert padded(buckets) == min(padded(choice) for choice in choices)


def test_rows_that_fill_a_batch_count_as_padding():
    lengths = [30] * 5 + [60] * 3
    assert bucket_lengths(lengths, 32, 2) == (32, 64)
    assert bucket_lengths(lengths, 32, 2, batch_size=8) == (64,)
    assert bucket_lengths([30] * 16 + [60] * 3, 32, 2, batch_size=8) == (32, 64)


def test_buckets_beyond_the_free_ones_have_to_save_what_they_are_worth():
    lengths = [30] * 10 + [60] * 10 + [90] * 10

    def found(free, worth):
        return bucket_lengths(lengths, 32, 3, free_buckets=free, worth=worth)

    assert bucket_lengths(lengths, 32, 3) == found(3, 99) == (32, 64, 96)
    # A third length saves 10 × 32 tokens, as many as 3⅓ of the longest samples have.
    assert found(2, 3) == (32, 64, 96) and len(found(2, 4)) == 2
    # A second one saves 10 × 64, or 6⅔, a third one half of it.
    assert found(1, 3) == (32, 64, 96) and len(found(1, 4)) == 2 and found(1, 7) == (96,)
    assert len(Batches(ENCODER, encode_lengths(lengths), 4, free_buckets=1, worth=9).shapes) == 2


@given(LENGTHS, st.integers(1, 7), st.sampled_from([None, 0, 5]))
def test_every_sample_is_in_one_batch_of_an_epoch(lengths, batch_size, seed):
    encoded = encode_lengths(lengths)
    batches = Batches(ENCODER, encoded, batch_size, seed=seed, multiple=16)
    seen = []
    for step in range(len(batches), 2 * len(batches)):  # the second epoch
        indices, batch = batches.indices_at(step), batches.batch_at(step)
        seen += indices.tolist()
        assert 1 <= len(indices) <= batch_size == len(batch.token_ids_BT)
        assert batch.example_weights_B.tolist() == [
            float(b < len(indices)) for b in range(batch_size)
        ]
        for b, i in enumerate(indices):
            assert batch.token_ids_BT[b][batch.attention_mask_BT[b]].tolist() == (
                encoded[i].token_ids_T.tolist()
            )
            assert (batch.images is not None) == (encoded[i].num_images > 0)
        shape = (batch.token_ids_BT.shape[1], None if batch.images is None else 1)
        assert shape in batches.shapes
    assert sorted(seen) == list(range(len(lengths)))


def test_shapes_are_few_and_text_has_its_own():
    batches = Batches(ENCODER, encode_lengths(range(1, 200)), 4, max_buckets=3)
    assert len(batches.shapes) == 6
    assert [shape[1] for shape in batches.shapes] == [1, 1, 1, None, None, None]


def test_without_a_seed_the_order_is_the_given_one():
    rows = [i for i, _ in Batches(ENCODER, encode_lengths([40, 3, 5, 4, 70, 6, 7]), 2)]
    assert [row.tolist() for row in rows] == [[2, 6], [0], [4], [1, 3], [5]]


def test_shuffling_is_by_seed_and_epoch_and_starts_anywhere():
    encoded = encode_lengths([5] * 30 + [50] * 30)

    def order(seed, steps):
        batches = Batches(ENCODER, encoded, 4, seed=seed)
        return [batches.indices_at(step).tolist() for step in steps]

    steps = range(40)
    whole = order(0, steps)
    assert order(0, steps) == whole and order(1, steps) != whole
    assert whole[:17] != order(None, range(17))
    assert order(0, reversed(steps)) == whole[::-1]
    batches = Batches(ENCODER, encoded, 4, seed=0)
    assert whole[: len(batches)] != whole[len(batches) : 2 * len(batches)]
    late = Batches(ENCODER, encoded, 4, seed=0)
    assert same(late.batch_at(33), batches.batch_at(33))


@given(LENGTHS, st.sampled_from([1, 2, 4]), st.integers(0, 1))
def test_processes_share_each_batch(lengths, count, seed):
    encoded = encode_lengths(lengths)
    whole = Batches(ENCODER, encoded, 4, seed=seed)
    shares = [
        Batches(ENCODER, encoded, 4, seed=seed, rows=rows) for rows in np.split(np.arange(4), count)
    ]
    for step in range(len(whole)):
        batch = whole.batch_at(step)
        parts = [share.batch_at(step) for share in shares]
        weights = np.concatenate([part.example_weights_B for part in parts])
        tokens = np.concatenate([part.token_ids_BT for part in parts])
        assert np.array_equal(weights, batch.example_weights_B)
        assert np.array_equal(tokens[weights > 0], batch.token_ids_BT[weights > 0])
        loss = np.concatenate([part.loss_weights_BT for part in parts])
        assert np.array_equal(loss, batch.loss_weights_BT)


def test_left_padding_reaches_the_encoder():
    (_, batch), *_ = Batches(ENCODER, encode_lengths([3]), 1, padding_side="left", multiple=4)
    assert batch.attention_mask_BT.tolist() == [[False, True, True, True]]


def test_what_cannot_be_encoded_is_named_all_at_once():
    samples = [question_sample(text, "", key=f"{i}/x") for i, text in enumerate(["a", "b!", "c!"])]
    with pytest.raises(ManuError, match=r"2 of 3 samples .*\n  1/x: .*'b!'\n  2/x: .*'c!'"):
        encode_all(ENCODER, samples)
    with pytest.raises(ManuError) as error:
        encode_all(ENCODER, [samples[1]] * 2)  # one fact, given twice
    assert str(error.value).count("1/x: ") == 1


def test_a_batch_of_nothing_is_an_error():
    with pytest.raises(ManuError, match="batch size 0"):
        Batches(ENCODER, encode_lengths([3]), 0)


def test_no_samples_are_an_error():
    with pytest.raises(ManuError, match="no samples"):
        Batches(ENCODER, [], 4)
