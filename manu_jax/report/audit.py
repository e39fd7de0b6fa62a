"""The audit as the report shows it: the verdict in words, a table of attacks, curves. Pure."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import markupsafe
import matplotlib

from manu_jax.evaluation.audit.attack import ANSWERED, AUDIT_METRICS, AuditRow
from manu_jax.evaluation.audit.registry import ATTACKS
from manu_jax.evaluation.audit.verdict import Verdict, standing, strongest, verdict
from manu_jax.report.numbers import NARROW_SPACE, points, share_right
from manu_jax.report.results import Results
from manu_jax.report.svg import SERIES, STYLE, VARIABLES, WIDTH, Plot, described, new_figure, to_svg
from manu_jax.types import MODALITIES, VANILLA

FEW = 10  # people to forget; below it intervals are said to be rough
KEPT = ("unseen", "retain")  # people to keep: those that no method saw, if there are any
FORMS = {"image": "With the portrait", "text": "By name"}
MEANINGS = {
    "not forgotten": "it still answers",
    "hidden": "the knowledge is still there and comes back at once",
    "hardened": "no answer comes back at once, but what was known has left more than in a model "
    "that never knew",
    "gone": "no attack finds more than in a model that never knew",
    "not found": "the attacks that were made find no more than in a model that never knew; "
    "relearning is not among them, or did not learn what it was trained on",
    "no floor": "there is no retrained model to compare with, so nothing can be said",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measure of one form. mark: "above", "undecided" or "", for the style."""

    value: str
    interval: str
    floor: str
    mark: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One measure in all forms that facts have; None where it was not made."""

    title: str
    metric: str
    cells: tuple[Cell | None, ...]


@dataclasses.dataclass(frozen=True)
class ModelAudit:
    """What one model's section shows. verdicts: (form, verdict, its reasons).

    groups: (title of the attack, what it finds, lines).
    """

    model: str
    is_headline: bool
    verdicts: tuple[tuple[str, Verdict, str], ...]
    groups: tuple[tuple[str, str, tuple[Line, ...]], ...]
    left_out: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A variant of relearning in the legend: its name and its line as SVG (26 × 12 box)."""

    name: str
    shape: markupsafe.Markup


def view(results: Results) -> dict[str, Any] | None:
    """Return what the section shows; None where nothing was audited."""
    rows = results.analyses.get("audit", ())
    if not rows:
        return None
    models = [name for name in results.models if any(row.model == name for row in rows)]
    models.sort(key=lambda name: name != results.headline)
    shown = models[0]
    curves = _curves([row for row in rows if row.model == shown])
    num_people = len(results.request.people)
    return {
        "few": num_people if num_people < FEW else 0,
        "has_depth": any(row.metric == "uds" for row in rows),
        "forms": [FORMS[modality].lower() for modality in results.modalities],
        "audits": [_model_audit(results, name) for name in models],
        "curves_of": shown,
        "curves": curves,
        "legend": _legend(rows, shown) if curves else [],
    }


def verdicts(results: Results, model: str) -> dict[str, Verdict]:
    """Return {modality: the verdict on a model}; empty where it was not audited."""
    rows = [row for row in results.analyses.get("audit", ()) if row.model == model]
    found = {}
    for modality in MODALITIES:
        of_form = [row for row in rows if row.modality == modality]
        if of_form:
            found[modality] = verdict(of_form, ATTACKS, loss=_loss(results, model, modality))
    return found


def sentences(results: Results, model: str) -> list[str]:
    """Return a sentence for each form: the verdict, and the numbers that it rests on."""
    return [
        f"{FORMS[modality]}: {sentence(found)}"
        for modality, found in verdicts(results, model).items()
    ]


def sentence(found: Verdict) -> str:
    """Return a verdict in words, with the rows that decide."""
    text = f"{found.word}: {_reasons(found)}"
    lost = _lost(found)
    return f"damaged, since {lost}; {text}" if lost else text


def _lost(found: Verdict) -> str:
    """Return what a damaged model lost; "" of another."""
    if found.loss is None or not found.is_damaged:
        return ""
    return f"people to keep lost {points(found.loss)}"


def _reasons(found: Verdict) -> str:
    """Return what the word of a verdict means, and the rows that decide."""
    text = f"{MEANINGS[found.word]}."
    if found.above:
        worst = found.above[0]
        more = len(found.above) - 1
        others = f", and {more} more above it" if more else ""
        text += f" {_named(worst)}: {_number(worst.value, worst)}, floor "
        text += f"{_number(worst.floor, worst)}{others}."
    if found.undecided:
        names = "; ".join(_named(row) for row in found.undecided[:2])
        more = len(found.undecided) - 2
        text += f" Undecided, with so few people: {names}{f' and {more} more' if more > 0 else ''}."
    return text


def _model_audit(results: Results, model: str) -> ModelAudit:
    rows = [row for row in results.analyses["audit"] if row.model == model]
    section = results.config.get("audit")
    is_full = isinstance(section, Mapping) and section.get("level") == "full"
    groups, left_out = [], []
    for name, attack in ATTACKS.items():
        of_attack = [row for row in rows if row.attack == name]
        if of_attack:
            lines = tuple(_lines(of_attack, results.modalities))
            groups.append((attack.title, attack.finds, lines))
        elif attack.full and not is_full:
            left_out.append(f"{attack.title}: made by audit: full.")
        elif attack.left_out:
            left_out.append(f"{attack.title}: {attack.left_out}")
    if not any(row.metric == "auc" for row in rows):
        left_out.append(
            "Membership scores: the benchmark has no people of the same kind who were never "
            "trained on."
        )
    told = tuple(
        (FORMS[modality], found, _below_the_verdict(found))
        for modality, found in verdicts(results, model).items()
    )
    return ModelAudit(model, model == results.headline, told, tuple(groups), tuple(left_out))


def _below_the_verdict(found: Verdict) -> str:
    """Return what stands below the verdict's own words: its reasons as sentences."""
    lost = _lost(found)
    told = [f"{lost}.", _reasons(found)] if lost else [_reasons(found)]
    return " ".join(text[0].upper() + text[1:] for text in told)


def _lines(rows: Iterable[AuditRow], forms: Sequence[str]) -> list[Line]:
    """Return a line for each variant and metric of one attack, with a cell for each form.

    A curve is one line, with its mean over the steps.
    """
    rows = tuple(rows)
    curves = {row.variant for row in rows if row.step is not None}
    cells: dict[tuple[str, str], dict[str, Cell]] = {}
    for row in strongest(rows):
        cells.setdefault((row.variant, row.metric), {})[row.modality] = _cell(row)
    return [
        Line(
            variant,
            _answers(variant in curves) if metric == ANSWERED else AUDIT_METRICS[metric].title,
            tuple(by_form.get(modality) for modality in forms),
        )
        for (variant, metric), by_form in cells.items()
    ]


def _answers(is_curve: bool) -> str:
    """Return the title of a share of answers beside its variant: of a curve that it is a mean."""
    return AUDIT_METRICS["area"].title if is_curve else ""


def _cell(row: AuditRow) -> Cell:
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{_number(row.low, row, sign=False)} to {_number(row.high, row, sign=False)}"
    place = standing(row) if AUDIT_METRICS[row.metric].is_judged else ""
    return Cell(
        _number(row.value, row),
        interval,
        "–" if row.floor is None else _number(row.floor, row),
        place if place in ("above", "undecided") else "",
    )


def _number(value: float | None, row: AuditRow, *, sign: bool = True) -> str:
    if value is None:
        return "–"
    if AUDIT_METRICS[row.metric].unit == "%":
        return f"{100 * value:.0f}" + f"{NARROW_SPACE}%" * sign
    return f"{value:.3g}" if row.metric in ("rate", "diverged") else f"{value:.2f}"


def _named(row: AuditRow) -> str:
    title = ATTACKS[row.attack].title
    metric = "" if row.metric == ANSWERED else AUDIT_METRICS[row.metric].title
    return ", ".join(part for part in (title, row.variant, metric) if part)


def _loss(results: Results, model: str, modality: str) -> float | None:
    for where in KEPT:
        before, after = (share_right(results, name, (where, modality)) for name in (VANILLA, model))
        if before is not None and after is not None:
            return before - after
    return None


def _strongest_curves(rows: Iterable[AuditRow]) -> dict[tuple[str, str], list[AuditRow]]:
    """Return {(attack, variant): the rows of its strongest rate by rising steps} of one form."""
    by_rate: dict[tuple[str, str], dict[float | None, list[AuditRow]]] = {}
    for row in rows:
        if row.step is not None and row.metric == ANSWERED:
            place = (row.attack, row.variant)
            by_rate.setdefault(place, {}).setdefault(row.rate, []).append(row)
    return {
        place: sorted(
            max(rates.values(), key=lambda these: sum(row.value for row in these) / len(these)),
            key=lambda row: row.step or 0,
        )
        for place, rates in by_rate.items()
    }


def _curves(rows: Sequence[AuditRow]) -> list[Plot]:
    """Return one plot per form: what comes back over the steps, dashed of the retrained model."""
    plots = []
    variants = _variants(rows)
    for modality, heading in FORMS.items():
        curves = _strongest_curves(row for row in rows if row.modality == modality)
        if not curves:
            continue
        with matplotlib.rc_context(STYLE):
            figure, axes = new_figure(WIDTH, 300, left=58, right=14, top=14, bottom=50)
            for place, curve in curves.items():
                color = SERIES[variants.index(place) % len(SERIES)]
                steps = [row.step or 0 for row in curve]
                axes.plot(steps, [100 * row.value for row in curve], color=color, linewidth=2.2)
                floors = [row.floor for row in curve]
                if None not in floors:
                    values = [100 * (floor or 0) for floor in floors]
                    axes.plot(steps, values, color=color, linewidth=1.3, linestyle=(0, (3, 2)))
            axes.set_xscale("symlog", base=2, linthresh=1)
            marks = sorted({row.step or 0 for curve in curves.values() for row in curve})
            axes.xaxis.set_ticks(marks, [str(step) for step in marks])
            axes.minorticks_off()
            axes.set_ylim(0, 102)
            axes.set_xlabel("steps of training")
            axes.set_ylabel("facts that come back, %")
            svg = to_svg(figure, f"return {heading}")
        words = "; ".join(
            f"{variant or ATTACKS[attack].title}: "
            + ", ".join(
                f"step {row.step}: {100 * row.value:.0f} (retrained {_number(row.floor, row)})"
                for row in curve
            )
            for (attack, variant), curve in curves.items()
        )
        alt = f"{heading}: percent of the facts to forget answered over the steps. {words}."
        plots.append(described(heading, svg, alt=alt, width=WIDTH))
    return plots


def _variants(rows: Iterable[AuditRow]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.attack, row.variant) for row in rows if row.step is not None))


def _legend(rows: Iterable[AuditRow], model: str) -> list[Curve]:
    found = []
    for index, (attack, variant) in enumerate(_variants(r for r in rows if r.model == model)):
        color = VARIABLES[SERIES[index % len(SERIES)]]
        line = f'<path d="M0 6H26" stroke="var({color})" stroke-width="2.2"/>'
        title = ATTACKS[attack].title
        name = f"{title}: {variant}" if variant else title
        found.append(Curve(name, markupsafe.Markup(line)))
    return found
