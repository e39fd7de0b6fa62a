"""A certificate's finding: whether what was asked is forgotten, in a word and in a sentence.

With b and a the shares of right answers before and after, and r what a model that never knew gets
right (where there is none, what guessing does), (b − a) / (b − r) of what there was to forget is
gone. The bounds are those of the report (report/changes.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from manu_jax.evaluation.analyses.analysis import Records
from manu_jax.report.changes import FORGOTTEN, KNOWN, PARTLY
from manu_jax.report.headline import STATUS_LABELS, joined
from manu_jax.report.numbers import percent
from manu_jax.requests.asking import RIGHT

FORMS = {"image": "with the image", "text": "by name"}


def finding(
    rows: Sequence[Mapping[str, Any]], audit: Sequence[Mapping[str, Any]], subjects: int
) -> dict[str, str]:
    """Return {status, label, title}: the key of the report's labels, the label, a sentence.

    rows: {set, modality, before, after, never_knew, guess} of the request's own questions. audit:
    {modality, word, …}, () where there was none.
    """
    own = [row for row in rows if row["set"] == "forget" and row["before"] is not None]
    found = [_verdict(row) for row in own]
    known = [one for one in found if one != "nothing"]
    if not own:
        status = "unknown"
    elif not known:
        status = "nothing"
    elif all(one == "forgotten" for one in known):
        words = {row["word"] for row in audit}
        status = "leak" if "not forgotten" in words else "forgotten"
        status = "hidden" if "hidden" in words else status
    else:
        status = "failed" if "failed" in known else "partly"
    return {"status": status, "label": STATUS_LABELS[status], "title": _title(own, subjects)}


def guess(records: Records, where: str, modality: str) -> float | None:
    """Return what guessing gets right of the questions on a set in one form; None for none.

    Of multiple choice it is one in so many options, of all else nothing.
    """
    shares = [
        1 / len(item["options"]) if item.get("options") else 0.0
        for task in RIGHT
        for item in records.get((where, task, modality), ())
    ]
    return sum(shares) / len(shares) if shares else None


def _verdict(row: Mapping[str, Any]) -> str:
    before, after = row["before"]["value"], row["after"]["value"]
    never = row["never_knew"]
    level = never["value"] if never is not None else row["guess"] or 0.0
    if before - level < KNOWN:
        return "nothing"
    gone = (before - after) / (before - level)
    return "forgotten" if gone >= FORGOTTEN else "partly" if gone >= PARTLY else "failed"


def _title(own: Sequence[Mapping[str, Any]], subjects: int) -> str:
    if not own:
        return "What the model answers about this request was not asked."
    who = "one subject" if subjects == 1 else f"{subjects} subjects"
    parts = [
        f"{percent(row['after']['value'])} {FORMS[row['modality']]} "
        f"(before: {percent(row['before']['value'])})"
        for row in own
    ]
    return f"Of the questions about {who}, the model answers {joined(parts)} right."
