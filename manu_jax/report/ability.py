"""The section on general ability: English, common knowledge and chat, before and after. Pure."""

from collections.abc import Sequence
from typing import Any

from manu_jax.data.sentences import faults_of
from manu_jax.evaluation.analyses.ability import (
    CHAT_KL,
    COMPLETED,
    ENGLISH,
    LEFT_OUT,
    MEANS,
    ONE_CHAT,
    SENTENCES,
    Ability,
)
from manu_jax.report.distances import SimpleTable
from manu_jax.report.numbers import percent, signed
from manu_jax.report.results import Results
from manu_jax.types import VANILLA

SHARES = (COMPLETED, SENTENCES)
HEADS = {
    ENGLISH: ("English", "loss, nats a token; lower is better"),
    COMPLETED: ("common knowledge", "% of sentences completed"),
    CHAT_KL: ("chat, KL", "nats a token from vanilla’s answers"),
    SENTENCES: ("chat, sentences", "% of answers"),
}
MOST_CHATS = 3  # that are shown, those that moved most


def view(results: Results) -> dict[str, Any] | None:
    """Return the variables of the section; None where general ability was not asked for."""
    rows: Sequence[Ability] = results.analyses.get("ability", ())
    if not rows:
        return None
    left_out = [row.note for row in rows if row.measure == LEFT_OUT]
    if left_out:
        return {"left_out": left_out[0], "finding": "", "table": None, "source": "", "chats": []}
    means = {(row.model, row.measure): row for row in rows if row.measure in MEANS}
    shown = [name for name in MEANS if any(measure == name for _, measure in means)]
    lines = tuple(
        (model, tuple(_cell(means.get((model, name))) for name in shown))
        for model in results.models
        if any((model, name) in means for name in shown)
    )
    return {
        "left_out": "",
        "finding": finding(results.headline, means),
        "table": SimpleTable(tuple(HEADS[name] for name in shown), lines),
        "source": next((row.note for row in rows if row.measure == ENGLISH), ""),
        "chats": _chats(rows, results.headline),
    }


def finding(headline: str, means: dict[tuple[str, str], Ability]) -> str:
    """Return what the headline method changed, in a sentence for each measure."""
    said = []
    for name, words in (
        (ENGLISH, "the loss on plain English"),
        (COMPLETED, "the share of sentences of common knowledge that are completed right"),
    ):
        row, before = means.get((headline, name)), means.get((VANILLA, name))
        if row is None or before is None:
            continue
        moved = _moved(row)
        from_to = f"from {_number(name, before.value)} to {_number(name, row.value)}"
        said.append(f"{words} {moved} {from_to}" if moved else f"{words} is as before")
    row, before = means.get((headline, SENTENCES)), means.get((VANILLA, SENTENCES))
    if row is not None and row.value is not None:
        count = round(row.value * row.n)
        are = "is a sentence" if count == 1 else "are sentences"
        words = f"{count} of {row.n} answers to chat prompts {are}"
        if before is not None and before.value is not None:
            words += f", {round(before.value * before.n)} of {before.n} before"
        said.append(words)
    return f"With {headline}, {'; '.join(said)}." if said else ""


def _cell(row: Ability | None) -> tuple[str, str]:
    if row is None:
        return ("–", "")
    small = f"n = {row.n:,}"
    if row.change is not None:
        small = f"{_change(row, row.change)} from vanilla"
        if row.change_low is not None and row.change_high is not None:
            low, high = _change(row, row.change_low), _change(row, row.change_high)
            small = f"{_change(row, row.change)} ({low} to {high})"
    elif row.measure == CHAT_KL and row.low is not None:
        small = f"{row.low:.2f} to {row.high:.2f}, n = {row.n}"
    return (_number(row.measure, row.value), small)


def _moved(row: Ability) -> str:
    """Return "rose" or "fell" where the interval of the change leaves 0 out, else ""."""
    if row.change_low is None or row.change_high is None:
        return ""
    return "rose" if row.change_low > 0 else "fell" if row.change_high < 0 else ""


def _number(measure: str, value: float | None) -> str:
    if value is None:
        return "–"
    return percent(value) if measure in SHARES else f"{value:.2f}"


def _change(row: Ability, value: float) -> str:
    return signed(100 * value, 1) if row.measure in SHARES else signed(value, 2)


def _chats(rows: Sequence[Ability], headline: str) -> list[dict[str, Any]]:
    """Return the prompts whose answers moved most: question, before, after, KL and faults."""
    of = {(row.model, row.prompt): row for row in rows if row.measure == ONE_CHAT}
    own = [row for (model, _), row in of.items() if model == headline and row.value is not None]
    own.sort(key=lambda row: -(row.value or 0))
    return [
        {
            "prompt": row.prompt,
            "before": of[VANILLA, row.prompt].answer if (VANILLA, row.prompt) in of else "",
            "after": row.answer,
            "kl": f"{row.value:.2f}",
            "faults": ", ".join(faults_of(row.answer)),
        }
        for row in own[:MOST_CHATS]
    ]
