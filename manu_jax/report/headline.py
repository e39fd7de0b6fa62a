"""The finding in words, from the numbers alone: asked, forgotten, leaked, cost. Pure.

The title speaks of the average over the kinds of question (changes.py). Each kind is also judged
alone, and those that still bring answers back are named.
"""

import dataclasses
from collections.abc import Sequence

from manu_jax.report import audit
from manu_jax.report.changes import Change, Guesses, average, change_of
from manu_jax.report.nouns import further, nouns, several
from manu_jax.report.numbers import (
    SET_TITLES,
    TASK_TITLES,
    kept_set,
    kinds_of_question,
    percent,
    points,
    share_right,
)
from manu_jax.report.results import Results
from manu_jax.types import RETRAINED, VANILLA

DAMAGE = 0.5  # loss on people to keep against loss on forget from which it is damage
KEPT_TITLES = {  # what the cost names, in this order
    "unseen": "{people} to keep, never given to a method,",
    "retain": "{people} to keep, given to the method,",
    "celebrity": SET_TITLES["celebrity"],
    "general": "General questions",
}
ONLY_KEPT = "{people} to keep"
ONLY_USED = (
    "Only {people} that the methods were given were asked: "
    "what other {people} lose was not measured."
)
NO_AUDIT = "{} A model that no longer says something may still hold it."
BELOW = 0.1  # r − m from which the answers avoid the truth

FORMS = {"image": "from their pictures", "text": "by name"}
COUNTS = "no one two three four five six seven eight nine ten eleven twelve".split()
MOST_NAMES = 6
STATUS_LABELS = {
    "forgotten": "Forgotten",
    "leak": "Leaks",
    "hidden": "Hidden",
    "partly": "Partly forgotten",
    "failed": "Not forgotten",
    "damage": "Damaged",
    "nothing": "Nothing to forget",
    "unknown": "Not measured",
}


@dataclasses.dataclass(frozen=True)
class Headline:
    """status: a key of STATUS_LABELS; sentences: (what about, lines) in order of importance."""

    status: str
    title: str
    sentences: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        return STATUS_LABELS[self.status]


def headline(results: Results, chance: float | None = None) -> Headline:
    """Return the finding in words. `chance`: what guessing gets right in multiple choice."""
    guesses = {"classification": chance, "cloze": 0.0, "generation": 0.0}
    asked = ("Asked", _asked(results))
    if not kinds_of_question(results):
        return Headline(
            "unknown",
            "Whether anything was forgotten was not measured.",
            (asked, ("Missing", "No row of results.json is a share of right answers.")),
        )
    forget = {m: average(results, ("forget", m), guesses) for m in results.modalities}
    missing = [modality for modality, change in forget.items() if change is None]
    measured = {modality: change for modality, change in forget.items() if change is not None}
    changes = _kept_changes(results, guesses)
    kept = kept_set(results)
    # People that the method was given count only where no others were asked about.
    keep = [change for change in changes if change.set in (kept, "celebrity", "general")]
    asked_of = {modality: measured[modality] for modality in _goal(results) if modality in measured}
    status, title = _verdict(
        results, asked_of, missing=[m for m in missing if m in _goal(results)], keep=keep
    )
    leaks = _leaks(results, guesses)
    if status == "forgotten" and leaks:
        status = "leak"
        title = f"{_people(results)} look forgotten, but some questions still bring them back."
    answered = [
        form
        for form in _forms_found(results, "not forgotten")
        if form in asked_of and asked_of[form].verdict == "forgotten"
    ]
    if status in ("forgotten", "leak") and answered:
        status = "leak"
        forms = joined([FORMS[form] for form in answered])
        title = f"{title[:-1]}; but the audit finds them not forgotten {forms}."
    hidden = [FORMS[form] for form in _forms_found(results, "hidden")]
    if status in ("forgotten", "leak") and hidden:
        status = "hidden"
        title = f"{title[:-1]}; but hidden, not gone, {joined(hidden)}."
    notes = [("Note", note) for note in results.notes]
    sentences = [asked, *_absent(results), *notes, *_counting(results, chance)]
    sentences += [(_capital(FORMS[m]), _forgetting(change)) for m, change in measured.items()]
    sentences += [(_capital(FORMS[m]), _unmeasured(results, m)) for m in missing]
    if leaks:
        sentences.append(("Still answered", "\n".join(leaks)))
    audited = audit.sentences(results, results.headline)
    if audited:
        sentences.append(("Hidden or gone", "\n".join(audited)))
    else:
        others = results.analyses.get("audit")
        what = f"{results.headline} was not audited." if others else "No audit was made."
        sentences.append(("Audit", NO_AUDIT.format(what)))
    sentences.append(("Cost", _cost_sentence(results, changes)))
    sentences += [("Other methods", text) for text in _others(results)]
    return Headline(status, title, tuple(sentences))


def _goal(results: Results) -> tuple[str, ...]:
    """Return the forms in which the facts were to be forgotten, as the config declares it."""
    return ("image",) if results.config.get("erase") == "visual" else results.modalities


def joined(words: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _verdict(
    results: Results, forget: dict[str, Change], *, missing: Sequence[str], keep: Sequence[Change]
) -> tuple[str, str]:
    """Return the status and the title."""
    people = _people(results)
    verdicts = {modality: change.verdict for modality, change in forget.items()}
    known = {modality: v for modality, v in verdicts.items() if v != "unknown"}
    if not known:
        if any(change.reference is None for change in forget.values()):
            return "unknown", (
                "What was forgotten cannot be said: there is no retrained model, and what "
                "guessing gets right is not known."
            )
        if forget:
            return "nothing", (
                f"There was nothing to forget: the model knew these {several(results)} no better "
                "than one that never saw them."
            )
        return "unknown", "Whether anything was forgotten was not measured."
    forget_loss = sum(c.before - c.after for c in forget.values()) / len(forget)
    retain = [change for change in keep if change.set in ("retain", "unseen")]
    retain_loss = sum(c.before - c.after for c in retain) / len(retain) if retain else 0.0
    if forget_loss >= 0.1 and retain_loss >= DAMAGE * forget_loss:
        return "damage", (
            f"Damage rather than forgetting: {several(results)} to keep lost "
            f"{points(retain_loss)}, those to be forgotten {points(forget_loss)}."
        )
    forgotten = [modality for modality, verdict in known.items() if verdict == "forgotten"]
    partly = [modality for modality, verdict in known.items() if verdict == "partly"]
    if len(forgotten) == len(known):
        cost = _cost_words(keep)
        forms = " and ".join(FORMS[modality] for modality in forgotten)
        alone = f"; {' and '.join(FORMS[m] for m in missing)} not measured" if missing else ""
        return "forgotten", f"{people} forgotten {forms}, {cost}{alone}."
    others = [modality for modality in known if modality not in forgotten]
    still = " and ".join(FORMS[modality] for modality in others)
    if forgotten:
        what = "partly remembered" if others == partly else "still known"
        return "leak", f"Forgotten {FORMS[forgotten[0]]}, but {what} {still}: that path leaks."
    if len(partly) == len(known):
        shares = [f"{_gone(forget[modality])} {FORMS[modality]}" for modality in partly]
        return "partly", f"{people} partly forgotten, {joined(shares)}, {_cost_words(keep)}."
    if partly:
        kept = next(modality for modality in known if modality not in partly)
        return "leak", (
            f"Partly forgotten {FORMS[partly[0]]}, but still known {FORMS[kept]}: that path leaks."
        )
    return "failed", f"Not forgotten: the model still knows {_the_people(results)}, {still}."


def _forms_found(results: Results, word: str) -> list[str]:
    """Return the forms that were to be forgotten and of which the audit's verdict is `word`."""
    found = audit.verdicts(results, results.headline)
    return [form for form in _goal(results) if form in found and found[form].word == word]


def _asked(results: Results) -> str:
    names = [name for _, name in results.request.people]
    shown = names[:MOST_NAMES]
    hidden = len(names) - len(shown)
    listed = joined([*shown, f"{hidden} more"] if hidden else shown) if names else "nobody by name"
    request = results.request
    size = _count(results)
    if request.num_people:
        size = f"{len(names)} of {request.num_people} {several(results)}"
    share = f" ({request.share:g}\u202f%)" if request.share is not None else ""
    return f"The model was asked to forget {size}{share}: {listed}."


def _absent(results: Results) -> list[tuple[str, str]]:
    """Return which form there is not, and why; said here alone."""
    return [
        (f"No {form} form", f"Asked and judged in text alone, since {why}.")
        for form, why in results.absent.items()
    ]


def _counting(results: Results, chance: float | None) -> list[tuple[str, str]]:
    """Return what a share of right answers is an average of, where it is one."""
    kinds = [
        TASK_TITLES[task].lower()
        + (f" (guessing gets {percent(chance)})" if task == "classification" and chance else "")
        for task in kinds_of_question(results)
    ]
    if len(kinds) < 2:
        return []
    return [("Counted", f"Right answers, averaged over {joined(kinds)}.")]


def _forgetting(change: Change) -> str:
    """Return one modality's sentences: before, after, retrained, what it means, and each kind."""
    whole = f"{percent(change.before)} right before, {percent(change.after)} after"
    whole += f"{_interval(change)}; {_level(change)} {_meaning(change)}"
    if len(change.parts) < 2:
        return whole
    parts = [
        f"{TASK_TITLES[part.task]} {_arrow(part)}{_interval(part, _level_in_short(part))}."
        for part in change.parts
    ]
    return "\n".join([whole, *parts])


def _level(change: Change) -> str:
    if change.is_retrained:
        return f"a model that never saw them gets {percent(change.reference)}."
    if change.reference is not None:
        return f"guessing gets {percent(change.reference)}; there is no retrained model."
    return "there is no retrained model to compare with."


def _level_in_short(change: Change) -> str:
    if change.reference is None:
        return ""
    who = "never saw them" if change.is_retrained else "guessing"
    return f"{who}: {percent(change.reference)}"


def _interval(change: Change, level: str = "") -> str:
    found = [level] if level else []
    if change.after_interval:
        low, high = (f"{100 * bound:.1f}" for bound in change.after_interval)
        found.insert(0, f"95\u202f% interval {low} to {high}")
    return f" ({'; '.join(found)})" if found else ""


def _arrow(change: Change) -> str:
    """Return before → after of one kind of question, as its metric is printed."""
    if change.is_a_share:
        return f"{100 * change.before:.1f} → {percent(change.after)}"
    return f"{change.before:.2f} → {change.after:.2f}"


def _meaning(change: Change) -> str:
    removed = change.removed
    if removed is None:
        return "So it cannot be said what was forgotten."
    reference = change.reference or 0.0
    if change.verdict == "forgotten":
        if reference - change.after >= BELOW:
            return (
                "Forgotten. It lies below that level, so the wrong answers themselves are a trace."
            )
        return "Forgotten."
    if change.after > change.before:
        return "Nothing was forgotten; the answers even improved."
    reached = change.after_interval and change.after_interval[0] <= reference
    doubt = " The interval reaches it, so the difference may be chance." if reached else ""
    said = "Partly forgotten" if change.verdict == "partly" else "Not forgotten"
    return f"{said}: {_gone(change)} of the way to that level.{doubt}"


def _gone(change: Change) -> str:
    return f"{100 * max(change.removed or 0.0, 0.0):.0f}\u202f%"


def _unmeasured(results: Results, modality: str) -> str:
    absent = [
        model
        for model in (VANILLA, results.headline)
        if not any(
            results.row(model, ("forget", task, modality), metric)
            for task, metric in kinds_of_question(results).items()
        )
    ]
    return f"Not measured: no numbers for {joined(absent)} in this form."


def _leaks(results: Results, guesses: Guesses) -> list[str]:
    """Return a sentence for each kind of question on the forget people that is still answered."""
    sentences = []
    transformed = ", in other words" if results.absent else f", {further(results)[1]}"
    for where, suffix in (("forget", ""), ("test", transformed)):
        for task, title in TASK_TITLES.items():
            if task == "likelihood":
                continue
            changes = [
                change_of(results, (where, task, m), guesses.get(task)) for m in _goal(results)
            ]
            forms = [
                f"{_arrow(change)} {FORMS[change.modality]}"
                for change in changes
                if change is not None and change.verdict == "kept"
            ]
            if forms:
                sentences.append(f"{title}{suffix}: {', '.join(forms)}.")
    return sentences


def _kept_changes(results: Results, guesses: Guesses) -> list[Change]:
    changes = [
        average(results, (where, modality), guesses) for where in KEPT_TITLES for modality in FORMS
    ]
    return [change for change in changes if change is not None]


def _losses(keep: Sequence[Change], least: float = -1.0) -> dict[str, float]:
    """Return {set: what it lost, averaged over its forms}; a form counts at `least` so much."""
    sets: dict[str, list[float]] = {}
    for change in keep:
        sets.setdefault(change.set, []).append(max(change.before - change.after, least))
    return {where: sum(losses) / len(losses) for where, losses in sets.items()}


def _cost_words(keep: Sequence[Change]) -> str:
    if not keep:
        return "at a cost that was not measured"
    loss = max(_losses(keep, 0.0).values())  # what one form gains makes up for no loss in another
    for limit, words in ((0.005, "at no measured cost"), (0.02, "at almost no cost")):
        if loss < limit:
            return words
    return "at a small cost" if loss < 0.05 else "at a cost" if loss < 0.15 else "at a high cost"


def _cost_sentence(results: Results, keep: Sequence[Change]) -> str:
    people = several(results)
    if not keep:
        return f"Not measured: no set of {people} or questions to keep was evaluated."
    texts = []
    losses = _losses(keep)
    is_of_used = "retain" in losses and "unseen" not in losses
    for where, loss in losses.items():
        title = ONLY_KEPT if is_of_used and where == "retain" else KEPT_TITLES[where]
        forms = [
            f"{100 * change.before:.1f} → {percent(change.after)} {form}"
            for change in keep
            if change.set == where
            for form in ("with images" if change.modality == "image" else "as text",)
        ]
        lost = f"lost {points(loss)}" if loss >= 0.0005 else "lost nothing"
        if loss < 0.0005 <= _losses(keep, 0.0)[where]:
            lost += " on average"
        title = title.format(people=_capital(people))
        texts.append(f"{title} {lost} ({', '.join(forms)}).")
    return "\n".join([*texts, ONLY_USED.format(people=people)] if is_of_used else texts)


def _others(results: Results) -> list[str]:
    """Return one sentence on what every other method leaves of the forget people, or none."""
    texts = []
    for model in results.models:
        if model in (VANILLA, RETRAINED, results.headline):
            continue
        values = [percent(share_right(results, model, ("forget", m))) for m in results.modalities]
        texts.append(f"{model} {' / '.join(values)}")
    if not texts:
        return []
    forms = " / ".join(FORMS[modality] for modality in results.modalities)
    forms = forms.replace("from their", "from")
    return [f"Right on the {several(results)} to forget, {forms}: {'; '.join(texts)}."]


def _people(results: Results) -> str:
    return _capital(_count(results))


def _the_people(results: Results) -> str:
    return f"the {_count(results)}" if results.request.people else f"these {several(results)}"


def _count(results: Results) -> str:
    size = len(results.request.people)
    word = COUNTS[size] if size < len(COUNTS) else str(size)
    return f"{word} {nouns(results)[size != 1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
