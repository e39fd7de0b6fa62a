"""The finding in words, from the numbers alone: asked, forgotten, leaked, cost. Pure.

In each modality, with v the vanilla model's share of right answers on the forget people, m the
method's, and r that of the retrained model (where there is none, what guessing gets right),

    removed = (v − m) / (v − r)

is the share of what there was to forget that is gone: 1 is a model that never saw them.
"""

import dataclasses
from collections.abc import Sequence

from manu_jax.report.numbers import (
    SET_TITLES,
    TASK_TITLES,
    main_metrics,
    percent,
    points,
    primary_task,
)
from manu_jax.report.results import RETRAINED, VANILLA, Results

FORGOTTEN = 0.9  # least `removed` that is called forgotten
PARTLY = 0.5  # least `removed` that is called partly forgotten
KNOWN = 0.05  # least v − r for which there is something to forget
DAMAGE = 0.5  # loss on retain against loss on forget from which it is damage, not forgetting
BELOW = 0.1  # r − m from which the answers avoid the truth

FORMS = {"image": "from their pictures", "text": "by name"}
COUNTS = "no one two three four five six seven eight nine ten eleven twelve".split()
MOST_NAMES = 6
STATUS_LABELS = {
    "forgotten": "Forgotten",
    "leak": "Leaks",
    "partly": "Partly forgotten",
    "failed": "Not forgotten",
    "damage": "Damaged",
    "unknown": "Not measured",
}


@dataclasses.dataclass(frozen=True)
class Change:
    """One set, task and modality: before, after, and the level of a model that never knew."""

    set: str
    task: str
    modality: str
    before: float
    after: float
    after_interval: tuple[float, float] | None
    reference: float | None
    is_retrained: bool  # the reference is the retrained model, not guessing

    @property
    def removed(self) -> float | None:
        """Share of what there was to forget that is gone, at most 1; None: there was nothing."""
        if self.reference is None or self.before - self.reference < KNOWN:
            return None
        return min(1.0, (self.before - self.after) / (self.before - self.reference))

    @property
    def verdict(self) -> str:
        removed = self.removed
        if removed is None:
            return "unknown"
        return "forgotten" if removed >= FORGOTTEN else "partly" if removed >= PARTLY else "kept"


@dataclasses.dataclass(frozen=True)
class Headline:
    """status: a key of STATUS_LABELS; sentences: (what about, text) in order of importance."""

    status: str
    title: str
    sentences: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        return STATUS_LABELS[self.status]


def headline(results: Results, chance: float | None = None) -> Headline:
    """Return the finding in words. `chance`: what guessing gets right in the headline's task."""
    task = primary_task(results)
    asked = ("Asked", _asked(results))
    if task is None:
        return Headline(
            "unknown",
            "Whether anything was forgotten was not measured.",
            (asked, ("Missing", "No row of results.json is a share of right answers.")),
        )
    forget = {m: _change(results, "forget", task, m, chance) for m in FORMS}
    missing = [modality for modality, change in forget.items() if change is None]
    measured = {modality: change for modality, change in forget.items() if change is not None}
    keep = _kept_changes(results, task)
    status, title = _verdict(results, measured, missing, keep)
    leaks = _leaks(results, task, chance)
    if status == "forgotten" and leaks:
        status = "leak"
        title = f"{_people(results)} look forgotten, but other questions still bring them back."
    sentences = [asked]
    sentences += [(_capital(FORMS[m]), _forgetting(change)) for m, change in measured.items()]
    sentences += [(_capital(FORMS[m]), _unmeasured(results, task, m)) for m in missing]
    if leaks:
        sentences.append(("Still answered", " ".join(leaks)))
    sentences.append(("Cost", _cost_sentence(keep)))
    sentences += [("Other methods", text) for text in _others(results, task)]
    return Headline(status, title, tuple(sentences))


def _verdict(
    results: Results, forget: dict[str, Change], missing: Sequence[str], keep: Sequence[Change]
) -> tuple[str, str]:
    """Return the status and the title."""
    people = _people(results)
    verdicts = {modality: change.verdict for modality, change in forget.items()}
    known = {modality: v for modality, v in verdicts.items() if v != "unknown"}
    if not known:
        if forget:
            return "unknown", (
                "There was nothing to forget: the model knew these people no better than one that "
                "never saw them."
            )
        return "unknown", "Whether anything was forgotten was not measured."
    forget_loss = sum(c.before - c.after for c in forget.values()) / len(forget)
    retain = [change for change in keep if change.set == "retain"]
    retain_loss = sum(c.before - c.after for c in retain) / len(retain) if retain else 0.0
    if forget_loss >= 0.1 and retain_loss >= DAMAGE * forget_loss:
        return "damage", (
            f"Damage rather than forgetting: people who were to stay lost {points(retain_loss)}, "
            f"those to be forgotten {points(forget_loss)}."
        )
    forgotten = [modality for modality, verdict in known.items() if verdict == "forgotten"]
    partly = [modality for modality, verdict in known.items() if verdict == "partly"]
    if len(forgotten) == len(known):
        cost = _cost_words(keep)
        forms = " and ".join(FORMS[modality] for modality in forgotten)
        alone = f"; {' and '.join(FORMS[m] for m in missing)} not measured" if missing else ""
        return "forgotten", f"{people} forgotten {forms}, {cost}{alone}."
    rest = [modality for modality in known if modality not in forgotten]
    still = " and ".join(FORMS[modality] for modality in rest)
    if forgotten:
        what = "partly remembered" if rest == partly else "still known"
        return "leak", f"Forgotten {FORMS[forgotten[0]]}, but {what} {still}: that path leaks."
    if len(partly) == len(known):
        return "partly", f"{people} only partly forgotten, {still}."
    if partly:
        kept = next(modality for modality in known if modality not in partly)
        return "leak", (
            f"Partly forgotten {FORMS[partly[0]]}, but still known {FORMS[kept]}: that path leaks."
        )
    return "failed", f"Not forgotten: the model still knows {_the_people(results)}, {still}."


def _asked(results: Results) -> str:
    names = [name for _, name in results.request.people]
    shown = names[:MOST_NAMES]
    rest = len(names) - len(shown)
    listed = _join([*shown, f"{rest} more"] if rest else shown) if names else "nobody by name"
    request = results.request
    size = f"{len(names)} of {request.num_people} people" if request.num_people else _count(names)
    share = f" ({request.share:g}\u202f%)" if request.share is not None else ""
    return f"The model was asked to forget {size}{share}: {listed}."


def _forgetting(change: Change) -> str:
    """Return one modality's sentence: before, after, retrained, and what it means."""
    interval = ""
    if change.after_interval:
        low, high = change.after_interval
        interval = f" (95\u202f% interval {100 * low:.1f} to {100 * high:.1f})"
    text = f"{percent(change.before)} right before, {percent(change.after)} after{interval}; " + (
        f"a model that never saw them gets {percent(change.reference)}."
        if change.is_retrained
        else f"guessing gets {percent(change.reference)}; there is no retrained model."
        if change.reference is not None
        else "there is no retrained model to compare with."
    )
    removed = change.removed
    if removed is None:
        return text + " So it cannot be said what was forgotten."
    reference = change.reference or 0.0
    if change.verdict == "forgotten":
        text += " Forgotten."
        if reference - change.after >= BELOW:
            text += " It lies below that level, so the wrong answers themselves are a trace."
        return text
    if change.after > change.before:
        return text + " Nothing was forgotten; the answers even improved."
    share = f"{100 * max(removed, 0):.0f}\u202f%"
    reached = change.after_interval and change.after_interval[0] <= reference
    doubt = " The interval reaches it, so the difference may be chance." if reached else ""
    if change.verdict == "partly":
        return text + f" Partly forgotten: {share} of the way to that level.{doubt}"
    return text + f" Not forgotten: {share} of the way to that level.{doubt}"


def _unmeasured(results: Results, task: str, modality: str) -> str:
    metric = main_metrics(results)[task]
    absent = [
        model
        for model in (VANILLA, results.headline)
        if results.row(model, "forget", task, modality, metric) is None
    ]
    return f"Not measured: no numbers for {_join(absent)} in this form."


def _leaks(results: Results, task: str, chance: float | None) -> list[str]:
    """Return a sentence for each other kind of question on the forget people still answered."""
    sentences = []
    for where, suffix in (("forget", ""), ("test", ", transformed portraits")):
        for other in TASK_TITLES:
            if (where, other) == ("forget", task) or other == "likelihood":
                continue
            guess = chance if other == task else 0.0 if other == "cloze" else None
            changes = [_change(results, where, other, modality, guess) for modality in FORMS]
            forms = [
                f"{_shown(change.before, other)} → {_shown(change.after, other)} "
                f"{FORMS[change.modality]}"
                for change in changes
                if change is not None and change.verdict == "kept"
            ]
            if forms:
                sentences.append(f"{TASK_TITLES[other]}{suffix}: {', '.join(forms)}.")
    return sentences


def _shown(value: float, task: str) -> str:
    return f"{value:.2f}" if task == "generation" else percent(value)


def _kept_changes(results: Results, task: str) -> list[Change]:
    changes = [
        _change(results, where, task, modality, None)
        for where in ("retain", "celebrity", "general")
        for modality in FORMS
    ]
    return [change for change in changes if change is not None]


def _cost_words(keep: Sequence[Change]) -> str:
    if not keep:
        return "at a cost that was not measured"
    loss = max(change.before - change.after for change in keep)
    for limit, words in ((0.005, "at no measured cost"), (0.02, "at almost no cost")):
        if loss < limit:
            return words
    return "at a small cost" if loss < 0.05 else "at a cost" if loss < 0.15 else "at a high cost"


def _cost_sentence(keep: Sequence[Change]) -> str:
    if not keep:
        return "Not measured: no set of people or questions to keep was evaluated."
    texts = []
    for where in dict.fromkeys(change.set for change in keep):
        title = {"retain": "People to keep", "general": "General questions"}.get(
            where, SET_TITLES[where]
        )
        forms = [
            f"{100 * change.before:.1f} → {percent(change.after)} {form}"
            for change in keep
            if change.set == where
            for form in ("with images" if change.modality == "image" else "as text",)
        ]
        texts.append(f"{title}: {', '.join(forms)}.")
    worst = max(keep, key=lambda change: change.before - change.after)
    loss = worst.before - worst.after
    title = SET_TITLES[worst.set].lower()
    if loss >= 0.005:
        texts.append(f"The largest loss is {points(loss)} ({title}, {worst.modality}).")
    return " ".join(texts)


def _others(results: Results, task: str) -> list[str]:
    """Return one sentence on what every other method leaves of the forget people, or none."""
    texts = []
    for model in results.models:
        if model in (VANILLA, RETRAINED, results.headline):
            continue
        values = []
        for modality in FORMS:
            row = results.row(model, "forget", task, modality, main_metrics(results)[task])
            values.append("not measured" if row is None else percent(row.value))
        texts.append(f"{model} {' / '.join(values)}")
    if not texts:
        return []
    return [f"Right on the people to forget, from pictures / by name: {'; '.join(texts)}."]


def _change(
    results: Results, where: str, task: str, modality: str, guess: float | None
) -> Change | None:
    metric = main_metrics(results).get(task, "")
    before = results.row(VANILLA, where, task, modality, metric)
    after = results.row(results.headline, where, task, modality, metric)
    retrained = results.row(RETRAINED, where, task, modality, metric)
    if before is None or after is None:
        return None
    interval = None if after.low is None or after.high is None else (after.low, after.high)
    return Change(
        where,
        task,
        modality,
        before.value,
        after.value,
        interval,
        guess if retrained is None else retrained.value,
        retrained is not None,
    )


def _people(results: Results) -> str:
    return _capital(_count(results.request.people))


def _the_people(results: Results) -> str:
    return f"the {_count(results.request.people)}" if results.request.people else "these people"


def _count(people: Sequence[object]) -> str:
    size = len(people)
    word = COUNTS[size] if size < len(COUNTS) else str(size)
    return f"{word} {'person' if size == 1 else 'people'}"


def _join(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
