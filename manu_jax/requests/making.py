"""From a request to an edit, and from the edits in force to one model.

Masks are made for the original model, from statistics that are kept, and their union is in force:
the order of requests changes nothing, and without one of them the others are what they were. Any
other edit is made for the model with all earlier edits. Where an earlier one is revoked, it is made
again.
"""

import logging
import shutil
from collections.abc import Sequence

from manu_jax.config import MaskMethod, StatisticsMethod
from manu_jax.context import EDIT as EDIT_OF_RUN
from manu_jax.context import MASK, Run
from manu_jax.data.forms import forms
from manu_jax.data.record import split_retain
from manu_jax.edits import files
from manu_jax.edits.edit import Edit, compose
from manu_jax.edits.files import EditFile
from manu_jax.edits.leafwise import write
from manu_jax.fingerprint import samples_hash, weights_hash
from manu_jax.folder import expand_path, file_hash, versions, write_atomic
from manu_jax.importance import statistics
from manu_jax.importance.by_statistics import statistics_file
from manu_jax.models.loaded import Loaded, load, save_pretrained
from manu_jax.planning.meshes import begin
from manu_jax.requests.book import Request, numbers_of
from manu_jax.requests.shared import (
    AGAIN,
    ANSWERS,
    EDIT,
    MODEL,
    Ledger,
    faults_of,
    other_model,
)
from manu_jax.run import run
from manu_jax.types import KEEP_SETS, MODALITIES, ManuError

logger = logging.getLogger("manu_jax")


def make_edits(ledger: Ledger) -> None:
    """Make the edit of every request in force that has none, or one of another model than now."""
    base = ledger.book.model
    earlier: list[Request] = []
    for number in numbers_of(ledger.book.in_force):
        request = ledger.book.requests[number]
        if request.made is None or request.made["base"] != base:
            _make(ledger, request, base, earlier=earlier)
            request = ledger.book.requests[number]
        assert request.made is not None
        earlier.append(request)
        if not ledger.are_masks:
            base = request.made["result"]


def joint_edit(ledger: Ledger, requests: Sequence[Request]) -> Edit | None:
    """Return the edit of the original that meets all of these requests; None for no requests.

    Raises ManuError where a file of theirs is not as it was written.
    """
    found = [edit_file(ledger, request) for request in requests]
    if not found:
        return None
    return files.union(found) if ledger.are_masks else compose([file.edit for file in found])


def edit_file(ledger: Ledger, request: Request) -> EditFile:
    """Return the edit of a request; ManuError where its file is not as it was written."""
    path = ledger.place(request.number) / EDIT
    made = request.made or {}
    found = file_hash(path) if path.is_file() else "not there"
    if found != made.get("edit"):
        raise ManuError(
            f"{path}: not as it was written (SHA-256 {made.get('edit')}, now {found}). Restore it "
            f"from a backup; the run beside it, {made.get('run')}, holds what it was made of."
        )
    return files.read(path)


def remove_surplus(ledger: Ledger, number: int) -> None:
    """Remove what a request needs no more: the models that its runs began with and made, for which
    its edit stands, and the answers of a check, whose rows are kept."""
    for pattern in ("base-*", "run-*/unlearned", f"{ANSWERS}/*{AGAIN}*"):
        for folder in ledger.place(number).glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def publish(ledger: Ledger) -> None:
    """Write the model with all requests in force, and their joint edit, unless they stand."""
    requests = ledger.book.in_force
    made = [request.made["edit"] for request in requests if request.made is not None]
    wanted = {"requests": numbers_of(requests), "edits": made}
    last = ledger.book.last("composed")
    stands = last is not None and {key: last[key] for key in wanted} == wanted
    if stands and (ledger.folder / MODEL / "config.json").exists():
        return
    edit, original = joint_edit(ledger, requests), ledger.original
    loaded = original if edit is None else edit.apply(original)
    save_pretrained(loaded, ledger.folder / MODEL)
    path, digest = ledger.folder / EDIT, None
    if edit is None:
        path.unlink(missing_ok=True)
    else:
        made_from = {"requests": wanted["requests"], "model": ledger.book.model}
        write(edit, path, {**made_from, "versions": versions()})
        digest = file_hash(path)
    now = weights_hash(loaded.model)
    ledger.book = ledger.book.with_entry("composed", 0, **wanted, edit=digest, model=now)
    told = ", ".join(map(str, wanted["requests"])) or "none"
    logger.info("ledger: %s is the model with the requests: %s", ledger.folder / MODEL, told)


def joint_faults(ledger: Ledger) -> list[str]:
    """Return what is wrong with the file of the joint edit, compared with the book."""
    last, path = ledger.book.last("composed"), ledger.folder / EDIT
    if last is None or last["edit"] is None:
        return []
    remedy = f"Delete {ledger.folder / MODEL}, and both are written anew"
    return [f"{fault}. {remedy}" for fault in faults_of(path, last["edit"])]


def published(ledger: Ledger) -> Loaded:
    """Return the model of the ledger's folder; ManuError where it is not the one last written."""
    last = ledger.book.last("composed")
    assert last is not None, "no model was written yet"
    section = ledger.book.config["model"]
    path = ledger.folder / MODEL
    remedy = "Delete the folder and give the command again: it is written anew."
    mesh = ledger.original.mesh
    try:
        loaded = load(path, section["dtype"], mesh, prompt=section["prompt"])
    except ManuError as error:
        raise ManuError(f"{path}: damaged. {remedy} What is wrong: {error}") from error
    found = weights_hash(loaded.model)
    if found != last["model"]:
        raise ManuError(
            f"{path}: the ledger wrote the model {last['model']} there, this is {found}. {remedy}"
        )
    return loaded


def _make(ledger: Ledger, request: Request, base: str, *, earlier: Sequence[Request]) -> None:
    """Run a request on the model with the hash `base`, and write its edit of that model."""
    number, place = request.number, ledger.place(request.number)
    start = ledger.base_folder(number, base)
    if base != ledger.book.model and not start.exists():
        edit = joint_edit(ledger, earlier)
        assert edit is not None
        save_pretrained(edit.apply(ledger.original), start)
    config, folder = ledger.config_of(number, base), ledger.run_folder(number, base)
    logger.info("ledger: request %d: its run is in %s", number, folder)
    for other in earlier:
        _take_statistics(ledger, request, other)
    try:
        run(config)
    except ManuError as error:
        raise ManuError(
            f"request {number}: {error}\nThe request stays pending. Mend this and give the command "
            f"again, or take it back: python -m manu_jax.ledger {ledger.folder} revoke {number}."
        ) from error
    current = begin(config, folder)
    found = weights_hash(current.vanilla.model)
    if found != base:
        raise other_model(config.model.path, base, found)
    edit = _edit_of(current)
    own = {"name": config.method.name, "request": number, "data": request.added["hash"]}
    write(edit, place / EDIT, {**own, "model": base, "versions": versions()})
    ledger.book = ledger.book.with_entry(
        "made",
        number,
        base=base,
        result=weights_hash(edit.apply(current.vanilla).model),
        edit=file_hash(place / EDIT),
        run=folder.name,
        changes=edit.describe(),
    )
    remove_surplus(ledger, number)


def _edit_of(current: Run) -> Edit:
    """Return what a run's method made of its model, as an edit."""
    folder, vanilla = current.directory, current.vanilla
    if isinstance(current.config.method, MaskMethod):
        return files.read(folder / MASK, vanilla).edit
    if (folder / EDIT_OF_RUN).exists():
        return files.read(folder / EDIT_OF_RUN, vanilla).edit
    model = current.config.model
    unlearned = load(folder / "unlearned", model.dtype, current.mesh, prompt=model.prompt)
    return files.between(vanilla, unlearned)


def _take_statistics(ledger: Ledger, request: Request, other: Request) -> None:
    """Copy what an earlier run measured of the facts to keep, where this one would measure the
    same: the same samples by a method that measures all of them, once."""
    assert other.made is not None
    config = ledger.config_of(request.number, ledger.book.model)
    method = config.method
    if not isinstance(method, StatisticsMethod) or method.auto is not None:
        return
    if method.rounds > 1 or method.keep_per_forget is not None:
        return
    source = ledger.run_folder(other.number, other.made["base"]) / "statistics" / method.name
    target = expand_path(config.output) / "statistics" / method.name
    named = ledger.named(request.number)
    if not named.sets["retain"]:
        return
    split = split_retain(named, config.data.keep_share, seed=config.seed)
    facts = split.facts(*KEEP_SETS)
    for modality in MODALITIES:
        name = statistics_file("keep", modality, method.signal)
        samples = forms(facts, modality, ledger.original.template)
        if not (source / name).exists() or (target / name).exists():
            continue
        _, made_from = statistics.load(source / name)
        if made_from.get("samples") == samples_hash(samples):
            write_atomic(target / name, (source / name).read_bytes())
            logger.info("ledger: what is kept was measured for request %d: %s", other.number, name)
