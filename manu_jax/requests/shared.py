"""What all requests of a ledger share: its folder, its book, the config of their runs.

FOLDER/ledger.json                      the book (book.py)
FOLDER/config.yaml                      the config of every run, without data.path and output
FOLDER/edit.safetensors                 the edits of all requests in force, as one
FOLDER/model/                           the model with that edit, a Hugging Face folder
FOLDER/checks/001.json                  what all requests answered, each time they were asked
FOLDER/requests/001/request/            a copy of the request
FOLDER/requests/001/run-MODEL/          its run, on the model with that hash
FOLDER/requests/001/edit.safetensors    its edit of that model
FOLDER/requests/001/answers/MODEL/      what a model answers to its questions
FOLDER/requests/001/certificate.json, certificate.html
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.config import (
    SYSTEM_PROMPT,
    MaskMethod,
    RunConfig,
    UnlearnSection,
    read_yaml,
    validate_config,
)
from manu_jax.context import Run
from manu_jax.data.benchmarks import benchmark_format
from manu_jax.data.record import Benchmark
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import expand_path, file_hash
from manu_jax.models.loaded import Loaded, family_of
from manu_jax.planning.meshes import begin
from manu_jax.requests.book import BOOK, Book, Request
from manu_jax.types import ManuError

MODEL, EDIT = "model", "edit.safetensors"
REQUESTS = "requests"
REQUEST = "request"  # in a request's folder
ANSWERS = "answers"
AGAIN = "-check-"  # in the name of answers that are asked for a check alone
SHOWN = 5  # names in an error


@dataclasses.dataclass(eq=False)
class Ledger:
    """A ledger's folder, and its book as it is now."""

    folder: Path
    book: Book

    @classmethod
    def begin(cls, folder: Path, values: Mapping[str, Any], request: Path) -> "Ledger":
        """Return a new ledger; its model is read, to know it again.

        values: of `shared_values`. request: the first, with which alone the config is whole. The
        first entry writes the first file. Raises ManuError for a folder that holds anything else.
        """
        others = sorted(
            entry.name
            for entry in folder.iterdir()
            if not entry.name.startswith(".") and entry.name != REQUESTS
        )
        if others:
            raise ManuError(
                f"{folder}: it holds {', '.join(others[:SHOWN])}, and no ledger. Give a new folder."
            )
        run = begin(_config(values, data=request, output=folder), folder)
        return cls(folder, Book(folder, weights_hash(run.vanilla.model), values))

    def place(self, number: int) -> Path:
        """Return the folder of a request."""
        return self.folder / REQUESTS / f"{number:03d}"

    def run_folder(self, number: int, base: str) -> Path:
        """Return the folder of a request's run on the model with the hash `base`."""
        return self.place(number) / f"run-{base}"

    def base_folder(self, number: int, base: str) -> Path:
        """Return where the model with the hash `base` is while a request's run needs it."""
        return self.place(number) / f"base-{base}"

    def config_of(self, number: int, base: str, *, data: Path | None = None) -> RunConfig:
        """Return the config of that run, on the ledger's model or on one in the request's folder.

        data: the request, where it is not yet in its folder.
        """
        place = self.place(number)
        model = None if base == self.book.model else self.base_folder(number, base)
        output = self.run_folder(number, base)
        return _config(self.book.config, data=data or place / REQUEST, output=output, model=model)

    def named(self, number: int, *, data: Path | None = None) -> Benchmark:
        """Return a request as its files have it, with all people to keep in `retain`.

        data: the request, where it is not yet in its folder.
        """
        config = self.config_of(number, self.book.model, data=data)
        read = benchmark_format(config.data.benchmark).read
        return read(expand_path(str(config.data.path)), config.data, config.seed)

    def run_of(self, request: Request) -> Run:
        """Return the run that made a request's edit, to read from."""
        assert request.made is not None, f"request {request.number} has no edit yet"
        base = request.made["base"]
        config = self.config_of(request.number, base)
        found = begin(config, self.run_folder(request.number, base))
        # The model that the run began with may be gone; it is of the original's family.
        found.family = family_of(self.config_of(request.number, self.book.model).model)
        return found

    @functools.cached_property
    def original(self) -> Loaded:
        """The model that all requests are about; ManuError where it is no longer what it was."""
        number = next(iter(self.book.requests))
        loaded = begin(self.config_of(number, self.book.model), self.folder).vanilla
        found = weights_hash(loaded.model)
        if found != self.book.model:
            raise other_model(self.book.config["model"]["path"], self.book.model, found)
        return loaded

    @functools.cached_property
    def are_masks(self) -> bool:
        """Whether requests are met by masks: each is made for the original, and their union is
        in force. Any other edit is made for the model with all earlier ones."""
        config = _config(self.book.config, data=self.folder, output=self.folder)
        return isinstance(config.method, MaskMethod)


def exists(folder: Path) -> bool:
    """Whether a ledger stands there."""
    return (folder / BOOK).exists()


def faults_of(path: Path, digest: str) -> list[str]:
    """Return how a file differs from what was written, by its SHA-256; [] where it does not."""
    if not path.is_file():
        return [f"{path}: not there"]
    return [] if file_hash(path) == digest else [f"{path}: not as it was written"]


def other_model(path: str | None, wanted: str, found: str) -> ManuError:
    """Return the error about a model that is not the one that a ledger's edits are for."""
    return ManuError(
        f"{path}: the ledger is about the model {wanted}, this is {found}. Put the original back, "
        "or begin another ledger."
    )


def shared_values(path: str, overrides: Sequence[str], request: Path) -> dict[str, Any]:
    """Return the values of a config file that the runs of a ledger share.

    Of its methods only the first is used, and there is no memory gate. Raises ManuError for a
    config that is none of a run, one without a model's path, and a first method that makes no edit.
    """
    values = read_yaml(path, overrides, kind=RunConfig)
    data = values.get("data")
    values["data"] = {**(data if isinstance(data, dict) else {}), "path": str(request)}
    config = validate_config({**values, "compare": [], "unlearn": []}, f"config {path}")
    faults = []
    if config.model.path is None or config.train.steps:
        faults.append(
            "a ledger is about a model that is there: give model.path, and no train.steps"
        )
    if isinstance(config.method, UnlearnSection) and config.method.objective == SYSTEM_PROMPT:
        faults.append(f"method: {SYSTEM_PROMPT} changes no weights, so there is no edit to keep")
    if config.mesh.distributed:
        faults.append("mesh.distributed: a ledger is kept by one process")
    if faults:
        raise ManuError(f"config {path}: {'; '.join(faults)}.")
    # A request is met whatever the model knows of it; the certificate says what it knew.
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"memory_gate": 0.0})}
    )
    shared = config.model_dump(mode="json", exclude={"output": True, "data": {"path"}})
    local = expand_path(str(config.model.path))
    if local.exists():  # a ledger is used from any folder
        shared["model"]["path"] = str(local.resolve())
    return shared


def _config(
    values: Mapping[str, Any], *, data: Path, output: Path, model: Path | None = None
) -> RunConfig:
    own = {
        "data": {**values["data"], "path": str(data)},
        "model": {**values["model"], **({} if model is None else {"path": str(model)})},
        "output": str(output),
    }
    return validate_config({**values, **own}, f"config of {output}")
