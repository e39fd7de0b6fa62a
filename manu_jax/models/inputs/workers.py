"""Processes that tokenise texts, and make vision inputs ahead of the step that takes them.

An image's pixels are the dear part of a sample, and only the process whose devices hold the sample
needs them. With workers, `encode` gives an image's vision inputs with their sizes alone, and their
patches come when a batch of this process's rows is collated. `Batches` asks for those of the next
steps, so that they are made while the devices work. How many patches there are, and where, follows
from an image's size: the first image of each size is made at once, and the others are checked
against it. Numbers and their order are the same without workers.

An image that came from a file much smaller than its pixels (`data.images.decode`) is sent as that
file. The worker decodes it, and looks whether it has the digest that the image had: one whose
pixels were changed since is sent as it is.

This is the standard library's pool: it is started once and serves every stage. grain starts its
workers anew with each iterator, of which a run has dozens, and each start imports JAX.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from manu_jax.fingerprint import EXIF_TURN, UPRIGHT, image_digest
from manu_jax.folder import ForeignErrors
from manu_jax.types import ManuError, VisionInput

KEPT_BYTES = 2**30  # of vision inputs that were made, and may be asked for again
PARENT_SECONDS = 5  # between two looks at whether the process that wants them is still there
SPARE_CORES = 2  # for the process itself, where workers are counted by cores
# More gain nothing, and each holds a tokenizer and the libraries that it is made with
MOST_A_CORE = 4

Make = Callable[[Any, Any, Any], tuple[VisionInput, ...]]
Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class SmallImage:
    """What is sent in place of an image's pixels: how to decode it again, and its digest."""

    decode_again: Callable[[], Any]
    digest: bytes

    def image(self) -> Any | None:
        """Return the image; None where it has another digest now."""
        image = self.decode_again()
        return image if image_digest(image) == self.digest else None


class Workers:
    """A pool of processes, and the vision inputs that they made last."""

    def __init__(self, number: int):
        self.number = number
        self._folder = tempfile.TemporaryDirectory(prefix="manu_jax-")
        self._pool = ProcessPoolExecutor(
            number, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
        )
        self._files: dict[Any, tuple[Any, Path]] = {}  # of what a worker reads once
        self._firsts: dict[Any, tuple[VisionInput, ...]] = {}  # of each size of images
        self._kept: collections.OrderedDict[PendingImage, int] = collections.OrderedDict()
        self._bytes = 0

    def vision_inputs(
        self,
        make: Make,
        image: Any,
        settings: tuple[Any, Any],
        *,
        digest: bytes,
        border: ForeignErrors,
    ) -> tuple[VisionInput, ...]:
        """Return what `make(image, *settings)` gives, now for the first image of a size, else when
        it is asked for. digest: of the image, as it is.
        """
        kind = self._kind(make, settings)
        size = kind, image.mode, image.size, image.getexif().get(EXIF_TURN, UPRIGHT)
        if size not in self._firsts:
            self._firsts[size] = make(image, *settings)
            return self._firsts[size]
        submit = functools.partial(self.submit, make, settings=settings)
        decode_again = getattr(image, "decode_again", None)
        small = None if decode_again is None else SmallImage(decode_again, digest)
        like = self._firsts[size]
        pending = PendingImage(image, like, submit, small=small, workers=self, border=border)
        return pending.vision_inputs()

    def submit(self, make: Callable[..., Made], one: Any, settings: tuple) -> "Future[Made]":
        """Have a worker make `make(one, *settings)`; it reads the settings once.

        Of a SmallImage it makes that of the image, and None where that has changed.
        """
        file = self._files[self._kind(make, settings)][1]
        with self.deaths_told():
            return self._pool.submit(_made, file, one)

    def _kind(self, make: Callable[..., Any], settings: tuple) -> Any:
        """Return what `make` with these settings is known by, and keep them for the workers."""
        kind = make, *map(id, settings)
        if kind not in self._files:
            content = pickle.dumps((make, *settings))
            file = Path(self._folder.name) / hashlib.sha256(content).hexdigest()
            file.write_bytes(content)
            self._files[kind] = settings, file  # which keeps them, and so their identities
        return kind

    @contextlib.contextmanager
    def deaths_told(self) -> Iterator[None]:
        """Raise ManuError where a worker was killed."""
        try:
            yield
        except BrokenProcessPool:
            raise ManuError(
                "a process that makes inputs ready was killed. Is there memory for "
                f"workers={self.number}? Lower it, or leave it out."
            ) from None

    def keep(self, image: "PendingImage", num_bytes: int) -> None:
        """Note that an image has its vision inputs; those of the images used longest ago go."""
        if image in self._kept:
            self._kept.move_to_end(image)
            return
        self._kept[image] = num_bytes
        self._bytes += num_bytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            oldest, size = self._kept.popitem(last=False)
            oldest.forget()
            self._bytes -= size

    def stop(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)
        self._folder.cleanup()


class PendingImage:
    """The vision inputs of an image, made by a worker when they are asked for.

    like: what another image of the same size gave. small: what may be sent in place of its pixels,
    if there is anything. border: what its errors say.
    """

    def __init__(
        self,
        image: Any,
        like: tuple[VisionInput, ...],
        submit: Callable[[Any], "Future[Any]"],
        *,
        small: SmallImage | None,
        workers: Workers,
        border: ForeignErrors,
    ):
        self._image, self._like, self._submit = image, like, submit
        self._small, self._workers, self._border = small, workers, border
        self._future: Future[Any] | None = None
        self._made: tuple[VisionInput, ...] | None = None

    def ask(self) -> None:
        """Have them made, unless they are, or are being made."""
        if self._made is None and self._future is None:
            self._future = self._submit(self._small or self._image)

    def made(self) -> tuple[VisionInput, ...]:
        """Return them, when they are there."""
        if self._made is None:
            self.ask()
            assert self._future is not None
            with self._border, self._workers.deaths_told():
                found: tuple[VisionInput, ...] = (
                    self._future.result() or self._submit(self._image).result()
                )
            self._future = None
            self._made = found
            self._check(found)
        self._workers.keep(self, sum(one.patches_PC.nbytes for one in self._made))
        return self._made

    def forget(self) -> None:
        """Drop them; they are made again where they are asked for again."""
        self._made = None

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """Return vision inputs whose patches are pending."""
        return tuple(
            VisionInput(
                PendingPatches(self, number, one.patches_PC.shape),  # pyright: ignore
                one.patch_positions_P2,
                one.num_features,
            )
            for number, one in enumerate(self._like)
        )

    def _check(self, made: tuple[VisionInput, ...]) -> None:
        def sizes(one: VisionInput) -> Any:
            places = one.patch_positions_P2
            rows = None if places is None else places.tolist()
            return one.patches_PC.shape, one.num_features, rows

        if [sizes(one) for one in made] != [sizes(one) for one in self._like]:
            raise ManuError(
                "two images of one size give vision inputs of different sizes, so that they can't "
                "be made by other processes. Set workers to 0."
            )


class PendingPatches:
    """The patches of a vision input that are not there yet: an array when NumPy asks for it."""

    def __init__(self, image: PendingImage, number: int, shape: tuple[int, ...]):
        self._image, self._number, self.shape = image, number, shape
        self.nbytes = 0  # here; those that are made count with the workers

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._image.made()[self._number].patches_PC, dtype)

    def ask(self) -> None:
        """Have the patches made."""
        self._image.ask()


_workers: Workers | None = None


@contextlib.contextmanager
def used(number: int) -> Iterator[None]:
    """Have inputs made ready by so many processes while the block runs; −1: one a core but two.

    Raises ManuError for more than MOST_A_CORE on each core of this machine, before any is started.
    """
    global _workers
    cores = os.cpu_count() or 1
    if number < 0:
        number = max(cores - SPARE_CORES, 0)
    if number > MOST_A_CORE * cores:
        raise ManuError(
            f"workers: {number} processes, and this machine has {cores} cores. Give at most "
            f"{MOST_A_CORE * cores}, {MOST_A_CORE} a core, or workers=-1: all cores but "
            f"{SPARE_CORES}."
        )
    if not number:
        yield
        return
    _workers = Workers(number)
    try:
        yield
    finally:
        _workers.stop()
        _workers = None


def current() -> Workers | None:
    """Return the workers of the block that runs, or None."""
    return _workers


def vision_inputs(
    make: Make,
    image: Any,
    settings: tuple[Any, Any],
    *,
    digest: bytes,
    border: ForeignErrors,
) -> tuple[VisionInput, ...]:
    """Return the vision inputs of an image: what `make(image, *settings)` gives.

    settings: the processor and the config. digest: of the image. With workers the patches are
    pending; border: what errors of the processor say then.
    """
    if _workers is None:
        return make(image, *settings)
    return _workers.vision_inputs(make, image, settings, digest=digest, border=border)


def _begin(parent: int) -> None:
    """Prepare a worker: it takes no device, leaves Ctrl-C to its parent, and ends with it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _read(file: Path) -> Any:
    return pickle.loads(file.read_bytes())


def _made(file: Path, one: Any) -> Any:
    make, *settings = _read(file)
    one = one.image() if isinstance(one, SmallImage) else one
    return None if one is None else make(one, *settings)
