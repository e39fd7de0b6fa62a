"""Images made ready by other processes: the same batches, and only this process's rows."""

import copy
import dataclasses
import gc
import io
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import tiny_llava
from PIL import Image

from manu_jax.data.batches import STEPS_AHEAD, Batches, encode_all
from manu_jax.data.forms import forms
from manu_jax.data.images import decode
from manu_jax.models.inputs import texts as token_texts
from manu_jax.models.inputs import workers
from manu_jax.models.inputs.caches import Caches
from manu_jax.models.inputs.texts import CHUNK
from manu_jax.types import ManuError, Sample, question_sample

SIZES = ((16, 16), (40, 24), (16, 16, "L"))


@pytest.fixture
def in_threads(monkeypatch):
    """Workers that are threads of this process, which start at once."""
    pools = lambda number, **_: ThreadPoolExecutor(number)  # noqa: E731
    monkeypatch.setattr(workers, "ProcessPoolExecutor", pools)


def samples(count=12):
    """Samples whose images are all different, of a few sizes."""
    random = np.random.default_rng(1)
    facts = []
    for number, fact in enumerate(tiny_llava.facts() * 2):
        width, height, *mode = SIZES[number % len(SIZES)]
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        facts.append(dataclasses.replace(fact, image=image.convert(mode[0] if mode else "RGB")))
    return forms(facts, "image", tiny_llava.loaded().template)[:count]


def encoder():
    return dataclasses.replace(tiny_llava.loaded(), caches=Caches())


def batches(rows=None, seed=None, size=2):
    loaded = encoder()
    return Batches(loaded, encode_all(loaded, samples()), size, seed=seed, rows=rows)


def assert_same(one, other, steps):
    for step in range(steps):
        jax.tree.map(np.testing.assert_array_equal, one.batch_at(step), other.batch_at(step))


@pytest.mark.parametrize("seed", [None, 3])
def test_batches_are_the_same_with_workers(in_threads, seed):
    plain = batches(seed=seed)
    with workers.used(2):
        assert_same(batches(seed=seed), plain, 2 * len(plain))


def test_images_are_made_when_a_batch_comes_near_and_no_others(in_threads, monkeypatch):
    """One of two hosts: of the images only its own rows' are made, a few steps ahead."""
    made = []
    kept = workers._made

    def noted(file, one):
        made.extend([one] if isinstance(one, Image.Image) else [])
        return kept(file, one)

    monkeypatch.setattr(workers, "_made", noted)
    with workers.used(1):
        ours = batches(rows=np.array([0]))
        assert not made  # but the first of each size, in this process
        ours.batch_at(0)
        wanted = {ours.indices_at(step)[0] for step in range(1 + STEPS_AHEAD)}
        pending = {i for i in wanted if not isinstance(patches(ours, i), np.ndarray)}
        deadline = time.monotonic() + 10
        while len(made) < len(pending) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(made) == len(pending) > 0


def patches(chosen, index):
    return chosen._encoded[index].vision_inputs[0].patches_PC


def test_what_was_made_goes_when_there_is_much(in_threads, monkeypatch):
    monkeypatch.setattr(workers, "KEPT_BYTES", 1)
    plain = batches()
    with workers.used(1):
        ours = batches()
        assert_same(ours, plain, len(plain))
        assert workers._workers is not None and len(workers._workers._kept) == 1
        assert_same(ours, plain, len(plain))


def test_an_image_of_other_sizes_than_its_like_is_an_error(in_threads, monkeypatch):
    kept = workers._made

    def doubled(file, image):
        return kept(file, image) * 2

    monkeypatch.setattr(workers, "_made", doubled)
    with workers.used(1), pytest.raises(ManuError, match="Set workers to 0"):
        ours = batches()
        for step in range(len(ours)):
            ours.batch_at(step)


def test_an_error_of_the_image_processor_names_the_prompt(in_threads, monkeypatch):
    kept = workers._made

    def broken(file, one):
        if isinstance(one, Image.Image):
            raise ValueError("no such mode")
        return kept(file, one)

    monkeypatch.setattr(workers, "_made", broken)
    with workers.used(1), pytest.raises(ManuError, match=r"prompt .*does not take its image"):
        ours = batches()
        for step in range(len(ours)):
            ours.batch_at(step)


def from_files(count=5):
    """Samples whose images come from files that are much smaller than they are."""
    facts = []
    for number, fact in enumerate(tiny_llava.facts(count)):
        file = io.BytesIO()
        Image.new("RGB", (90, 60), (40 * number, 99, 7)).save(file, "JPEG")
        facts.append(dataclasses.replace(fact, image=decode(file.getvalue())))
    return forms(facts, "image", tiny_llava.loaded().template)


@pytest.mark.parametrize("is_changed", [False, True])
def test_an_image_is_sent_as_its_file_unless_it_was_changed_since(
    in_threads, monkeypatch, is_changed
):
    chosen = from_files()
    if is_changed:
        for sample in chosen:
            sample.images[0].paste((200, 0, 0), (20, 20, 80, 50))
    loaded, plain = encoder(), encoder()
    plain = plain.collate(encode_all(plain, chosen))
    sent, kept = [], workers._made
    monkeypatch.setattr(workers, "_made", lambda file, one: sent.append(one) or kept(file, one))
    with workers.used(1):
        jax.tree.map(
            np.testing.assert_array_equal, loaded.collate(encode_all(loaded, chosen)), plain
        )
    num_files = sum(isinstance(one, workers.SmallImage) for one in sent)
    num_images = sum(isinstance(one, Image.Image) for one in sent)
    assert (num_files, num_images) == (4, 4 if is_changed else 0)


@pytest.mark.slow
def test_with_processes_the_run_itself_makes_the_first_image_of_each_kind_alone(monkeypatch):
    """Of each size and mode. Counted here: the others import the image processor for themselves."""
    made, kind = [], type(tiny_llava.loaded().processor.image_processor)
    kept = kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda *args, **named: made.append(1) or kept(*args, **named)
    )
    plain = batches()
    assert len(made) == len(samples())
    made.clear()
    with workers.used(1):
        assert_same(batches(), plain, len(plain))
    assert len(made) == len(SIZES)


@pytest.mark.slow
def test_processes_make_the_same_and_a_killed_one_is_told_of():
    plain, plain_texts = batches(), tokens_alone(encoder(), texts())
    loaded, files = encoder(), encoder()
    files = files.collate(encode_all(files, from_files()))
    with workers.used(2):
        assert_same(batches(), plain, len(plain))
        found = loaded.collate(encode_all(loaded, from_files()))
        jax.tree.map(np.testing.assert_array_equal, found, files)
        loaded = encoder()
        loaded.tokenise_ahead(texts())
        for future, _ in loaded.caches.tokens._pending.values():
            future.result()
        for one, other in zip(tokens_alone(loaded, texts()), plain_texts, strict=True):
            np.testing.assert_array_equal(one.ids_T, other.ids_T)
            np.testing.assert_array_equal(one.offsets_T2, other.offsets_T2)
        kill_workers()
        with pytest.raises(ManuError, match="was killed. Is there memory for workers=2"):
            fresh = batches()
            for step in range(len(fresh)):
                fresh.batch_at(step)
        with pytest.raises(ManuError, match="was killed. Is there memory for workers=2"):
            encode_all(encoder(), texts())
    assert workers._workers is None


@pytest.mark.slow
def test_texts_of_a_worker_that_was_killed_are_tokenised_by_the_run_itself():
    plain = tokens_alone(encoder(), texts())
    with workers.used(1):
        loaded = encoder()
        loaded.tokenise_ahead(texts())
        kill_workers()
        for future, _ in loaded.caches.tokens._pending.values():
            assert future.exception() is not None
        for one, other in zip(tokens_alone(loaded, texts()), plain, strict=True):
            np.testing.assert_array_equal(one.ids_T, other.ids_T)


def kill_workers():
    assert workers._workers is not None
    for process in list(workers._workers._pool._processes.values()):
        os.kill(process.pid, signal.SIGKILL)


def test_minus_one_counts_the_cores(in_threads, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    with workers.used(-1):
        assert workers._workers is not None and workers._workers.number == 4
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with workers.used(-1):
        assert workers._workers is None


@pytest.mark.parametrize("number", [17, 100_000])
def test_more_than_four_processes_a_core_are_refused_before_one_starts(monkeypatch, number):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    told = f"workers: {number} processes, and this machine has 4 cores. Give at most 16, 4 a core"
    with pytest.raises(ManuError, match=told), workers.used(number):
        pass


def test_four_processes_a_core_are_allowed(in_threads, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with workers.used(8):
        assert workers._workers is not None and workers._workers.number == 8


def test_settings_stay_from_the_first_image_on_since_they_are_known_by_identity(in_threads):
    processor = copy.copy(tiny_llava.loaded().processor)
    kept = weakref.ref(processor)
    with workers.used(1):
        loaded = dataclasses.replace(encoder(), processor=processor)
        loaded.vision_inputs(samples(1)[0].images[0])
        del loaded, processor
        gc.collect()
        assert kept() is not None


def texts(count=2 * CHUNK + 3):
    """Samples of different texts, and one of them twice."""
    asked = [
        question_sample(f"Where does person {number} live?", " Oslo") for number in range(count)
    ]
    return [*asked, asked[0]]


def tokens_alone(loaded, samples):
    return [loaded._tokens(loaded._text(sample)) for sample in samples]


def test_texts_are_tokenised_by_workers_to_the_same_tokens(in_threads, monkeypatch):
    """In chunks, each text once; here all are done before the first one's turn."""
    plain = tokens_alone(encoder(), texts())
    given, made = [], workers._made
    monkeypatch.setattr(workers, "_made", lambda *args: given.append(args[1]) or made(*args))
    here, kept = [], token_texts._tokens
    with workers.used(2):
        loaded = encoder()
        loaded.tokenise_ahead(texts())
        for future, _ in loaded.caches.tokens._pending.values():
            future.result()
        monkeypatch.setattr(token_texts, "_tokens", lambda *args: here.append(1) or kept(*args))
        encoded = encode_all(loaded, texts())
        assert [len(chunk) for chunk in given] == [CHUNK, CHUNK, 3] and not here
        for one, other, sample in zip(tokens_alone(loaded, texts()), plain, encoded, strict=True):
            np.testing.assert_array_equal(one.ids_T, sample.token_ids_T)
            np.testing.assert_array_equal(one.offsets_T2, other.offsets_T2)
        encode_all(loaded, texts())
        assert len(given) == 3


def test_the_run_itself_tokenises_what_workers_have_not_done(in_threads, monkeypatch):
    let, made = threading.Event(), workers._made
    monkeypatch.setattr(workers, "_made", lambda *args: let.wait(60) and made(*args))
    plain = encode_all(encoder(), texts())
    with workers.used(1):
        loaded = encoder()
        found = encode_all(loaded, texts())  # while the worker waits
        loaded.tokenise_ahead([question_sample("Who?", " Ann")])
        let.set()
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one.token_ids_T, other.token_ids_T)
        np.testing.assert_array_equal(one.loss_weights_T, other.loss_weights_T)
    assert loaded.encode(question_sample("Who?", " Ann")).num_tokens  # the workers have gone


def test_a_sample_at_fault_is_told_of_with_workers_as_without(in_threads):
    wrong = [*texts(1), Sample((("<image> Who is it?", False), (" Ann", True)), (), "one")]
    with pytest.raises(ManuError) as plain:
        encode_all(encoder(), wrong)
    with workers.used(1), pytest.raises(ManuError) as found:
        encode_all(encoder(), wrong)
    assert str(found.value) == str(plain.value)


def test_without_workers_nothing_is_asked_ahead():
    loaded = encoder()
    loaded.tokenise_ahead(texts())
    assert not loaded.caches.tokens._pending
