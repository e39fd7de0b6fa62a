"""The certificate of a request: what was asked, what was done, what is answered now, and hashes.

    certificate.json    {"request", "issued", "revoked",
        "asked": {"added", "benchmark", "subjects", "facts", "hash"},
        "method": {"name", "kind", "settings", "changes", "separable", "on": earlier requests},
        "finding": {"status", "label", "title"},
        "forgotten": [{set, modality, before, after, never_knew, guess}],
        "kept": [{request, set, modality, then, now, difference, is_regression}],
        "audit": [{modality, word, text, sentence}],  of the request's own run
        "earlier": [as "kept", of the other requests],
        "regressions": [sentence], "hashes": {…}, "versions": {…}}
    certificate.html    the same, to be read and printed (report/certificate.py)

`before` is the model that the request's run began with, `after` the ledger's model with all
requests in force. A certificate is written once; it is written anew where the request's edit was
made again, or the request is revoked.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manu_jax.evaluation.audit.attack import ANSWERED
from manu_jax.evaluation.audit.registry import ATTACKS
from manu_jax.evaluation.suite import stored_records
from manu_jax.folder import file_hash, versions, write_atomic
from manu_jax.report import audit
from manu_jax.report.certificate import render
from manu_jax.report.numbers import percent
from manu_jax.report.results import Results, load_results
from manu_jax.requests.asking import KEPT, Asked, rows_of, sentence, share
from manu_jax.requests.book import Request
from manu_jax.requests.finding import finding, guess
from manu_jax.requests.making import edit_file
from manu_jax.requests.shared import Ledger, faults_of
from manu_jax.types import FORGET_SETS, MODALITIES, RETRAINED, VANILLA, ManuError

JSON, HTML = "certificate.json", "certificate.html"


def certify(ledger: Ledger) -> None:
    """Write the certificate of every request in force that has none of its present edit."""
    for request in ledger.book.in_force:
        made, certified = request.made, request.certified
        assert made is not None
        if certified is None or certified["edit"] != made["edit"]:
            _certify(ledger, request)


def mark_revoked(ledger: Ledger) -> None:
    """Say on the certificate of every revoked request that it is revoked, and when."""
    for request in ledger.book.requests.values():
        if request.revoked is None or request.certified is None:
            continue
        content = read(ledger, request)
        if content["revoked"] != request.revoked["time"]:
            _write(ledger, request, {**content, "revoked": request.revoked["time"]})


def read(ledger: Ledger, request: Request) -> dict[str, Any]:
    """Return the content of a request's certificate; ManuError where it is missing or damaged."""
    path = ledger.place(request.number) / JSON
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ManuError(
            f"{path}: damaged ({error}). Restore the file from a backup: it is what was certified."
        ) from error


def faults(ledger: Ledger, request: Request) -> list[str]:
    """Return what is wrong with a request's certificate, compared with the book."""
    certified, path = request.certified, ledger.place(request.number) / JSON
    if certified is None:
        return []
    if not path.is_file():
        return [f"{path}: not there"]
    content = read(ledger, request)
    text = _text({**content, "revoked": None})
    if _hash(text) != certified["sha256"]:
        return [f"{path}: not as it was written"]
    # Its page is rendered anew when it is revoked. Earlier ledgers did not keep the page's hash.
    page, known = path.with_name(HTML), certified.get("page")
    if request.revoked is None and known is not None:
        return faults_of(page, known)
    return []


def _certify(ledger: Ledger, request: Request) -> None:
    content = _content(ledger, request)
    _write(ledger, request, content)
    composed = ledger.book.last("composed")
    assert composed is not None and request.made is not None
    ledger.book = ledger.book.with_entry(
        "certified",
        request.number,
        edit=request.made["edit"],
        model=composed["model"],
        sha256=_hash(_text(content)),
        page=file_hash(ledger.place(request.number) / HTML),
    )


def _write(ledger: Ledger, request: Request, content: Mapping[str, Any]) -> None:
    place = ledger.place(request.number)
    write_atomic(place / HTML, render(content))
    write_atomic(place / JSON, _text(content))


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content(ledger: Ledger, request: Request) -> dict[str, Any]:
    current = ledger.run_of(request)
    folder, method = current.directory, current.config.method
    results, file = load_results(folder), edit_file(ledger, request)
    rows, checked = rows_of(ledger), ledger.book.last("checked")
    made, added, composed = request.made, request.added, ledger.book.last("composed")
    assert made is not None and checked is not None and composed is not None
    others = [row for row in rows if row.request != request.number or row.set in KEPT]
    on = [] if ledger.are_masks else _before(composed["requests"], request.number)
    forgotten, audited = _forgotten(folder, rows, request), _audit(results)
    return {
        "request": request.number,
        "issued": checked["time"],
        "revoked": None,
        "asked": {
            "added": added["time"],
            "benchmark": current.config.data.benchmark,
            "subjects": added["subjects"],
            "facts": added["facts"],
            "hash": added["hash"],
        },
        "method": {
            "name": method.name,
            "kind": method.kind,
            "settings": method.model_dump(mode="json", exclude={"name", "kind", "prompt"}),
            "changes": made["changes"],
            "separable": file.edit.separable,
            "on": on,
        },
        "finding": finding(forgotten, audited, len(added["subjects"])),
        "forgotten": forgotten,
        "kept": [dataclasses.asdict(row) for row in others if row.set in KEPT],
        "audit": audited,
        "earlier": [dataclasses.asdict(row) for row in others if row.set in FORGET_SETS],
        "regressions": [sentence(row) for row in rows if row.is_regression],
        "hashes": {
            "original model": ledger.book.model,
            "model of the run": made["base"],
            "request": added["hash"],
            "edit (SHA-256)": made["edit"],
            "joint edit (SHA-256)": composed["edit"],
            "model with all requests": composed["model"],
            "results.json (SHA-256)": file_hash(folder / "results.json"),
            "check (SHA-256)": checked["sha256"],
            "ledger before this": ledger.book.hash(),
        },
        "versions": versions(),
    }


def _before(numbers: list[int], number: int) -> list[int]:
    return [one for one in numbers if one < number]


def _forgotten(folder: Path, rows: list[Asked], request: Request) -> list[dict[str, Any]]:
    """Return a row for each form of the request's own questions: before, after, never knew."""
    before = stored_records(folder / "evaluation" / VANILLA)
    never = stored_records(folder / "evaluation" / RETRAINED)
    return [
        {
            "set": row.set,
            "modality": row.modality,
            "before": share(before, row.set, row.modality),
            "after": row.now,
            "never_knew": share(never, row.set, row.modality),
            "guess": guess(before, row.set, row.modality),
        }
        for row in rows
        if row.request == request.number and row.set in FORGET_SETS
    ]


def _audit(results: Results) -> list[dict[str, Any]]:
    found = audit.verdicts(results, results.headline)
    return [
        {
            "modality": modality,
            "word": found[modality].word,
            "text": found[modality].text,
            "sentence": audit.sentence(found[modality]) + _most(results, modality),
        }
        for modality in MODALITIES
        if modality in found
    ]


def _most(results: Results, modality: str) -> str:
    """Return what the attack brings back that brings back most, in words.

    Of attacks that train every step counts, also where the report has their mean over the steps.
    """
    rows = [
        row
        for row in results.analyses.get("audit", ())
        if (row.model, row.modality, row.metric) == (results.headline, modality, ANSWERED)
    ]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row.value)
    after = f"after {most.step} step{'s' * (most.step != 1)}" if most.step else ""
    named = ", ".join(part for part in (ATTACKS[most.attack].title, most.variant, after) if part)
    return f" Most comes back by: {named} ({percent(most.value)} of {most.n} facts)."
