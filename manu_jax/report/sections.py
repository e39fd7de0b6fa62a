"""The sections of the report: which template shows what, in the order of the page.

A template is the file of the section's name in templates/; it holds the section's words. An
analysis without an entry here has a section after those of the known analyses, whose template gets
the rows alone (`rows`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from manu_jax.evaluation.analyses.registry import ANALYSES
from manu_jax.report import (
    ability,
    audit,
    calibration,
    distances,
    edits,
    examples,
    headline,
    judged,
    leakage,
    neurons,
    nouns,
    nulls,
    numbers,
    plots,
    published,
)
from manu_jax.report.edits import EditSummary
from manu_jax.report.inputs import Item, Place, PruneCount
from manu_jax.report.results import Results

LAST_ANALYSIS = "audit"  # sections of further analyses come after it


@dataclasses.dataclass(frozen=True)
class Material:
    """All that a report is made of. portraits: data URIs by person ID. names: of people by ID.

    plan: the file of the run's plan beside the report; None where there is none.
    """

    results: Results
    items: Mapping[Place, Sequence[Item]]
    counts: Mapping[str, Sequence[PruneCount]]
    edits: Mapping[str, EditSummary]
    versions: Mapping[str, str]
    portraits: Mapping[str, str]
    names: Mapping[str, str]
    plan: str | None = None

    @property
    def chance(self) -> float | None:
        """What guessing gets right in multiple choice, if it was asked."""
        if "classification" not in numbers.kinds_of_question(self.results):
            return None
        return numbers.chance(self.results, self.items, "classification")


@dataclasses.dataclass(frozen=True)
class Section:
    """One section. view: the variables of its template; None leaves the section out.

    inside: the section whose template shows this one among its `parts`, by the view's title; None:
    the page itself. template: a file elsewhere; None: that of its name in templates/.
    """

    view: Callable[[Material], Mapping[str, Any] | None]
    inside: str | None = None
    template: Path | None = None


def all_sections() -> dict[str, Section]:
    """Return the sections in the order of the page, with one for every further analysis."""
    found = {}
    for name, section in SECTIONS.items():
        found[name] = section
        if name == LAST_ANALYSIS:
            for further, analysis in ANALYSES.items():
                if further not in SECTIONS:
                    view = functools.partial(_rows_view, further)
                    found[further] = Section(view, template=analysis.template)
    return found


def _rows_view(name: str, material: Material) -> dict[str, Any]:
    return {"rows": material.results.analyses.get(name, ())}


def _numbers(material: Material) -> dict[str, Any]:
    main, others = numbers.tables(material.results)
    return {"main_tables": main, "other_tables": others}


def _people(material: Material) -> dict[str, Any]:
    changes = numbers.people(material.results, material.items)
    kinds = numbers.kinds_of_question(material.results)
    shown = [{line.person for line in lines} for lines in changes.values()]
    asked = [identity for identity, _ in material.results.request.people]
    return {
        "people": plots.people_plots(changes),
        "num_left_out": sum(any(one not in form for form in shown) for one in asked),
        "people_items": numbers.item_range(changes),
        "kinds": headline.joined([numbers.TASK_TITLES[task].lower() for task in kinds]),
    }


def _neurons(material: Material) -> dict[str, Any]:
    counts = material.counts
    return {
        "maps": plots.heat_maps(counts),
        "largest_share": numbers.percent(plots.largest_share(counts)),
        "counts": counts.get(material.results.headline, []),
        "rows_only": [name for name, parts in counts.items() if parts and parts[0].is_of_rows],
        **edits.view(material.results, material.edits),
    }


def _examples(material: Material) -> dict[str, Any]:
    results = material.results
    shown = examples.examples(results, material.items, material.names)
    people, has_both_forms = nouns.several(results), not results.absent
    rule = examples.rule(shown, people, has_both_forms=has_both_forms)
    number = headline.COUNTS[len(shown)].capitalize()
    title = f"{number} answer{'s' * (len(shown) != 1)}" if shown else "Answers"
    return {"examples": shown, "title": title, "rule": rule, "pictures": material.portraits}


def _glossary(material: Material) -> dict[str, Any]:
    chance = material.chance
    return {"chance": None if chance is None else numbers.percent(chance)}


def _this_run(material: Material) -> dict[str, Any]:
    results = material.results
    return {
        "config": yaml.safe_dump(dict(results.config), sort_keys=False, allow_unicode=True),
        "versions": material.versions,
        "total_seconds": sum(results.stage_seconds.values()),
        "plan": material.plan,
    }


SECTIONS: dict[str, Section] = {
    "numbers": Section(_numbers),
    "distances": Section(lambda m: distances.distances_view(m.results), inside="numbers"),
    "differences": Section(lambda m: distances.differences_view(m.results), inside="numbers"),
    "published": Section(lambda m: published.view(m.results)),
    "judged": Section(lambda m: judged.view(m.results)),
    "alpha_sweep": Section(lambda m: plots.sweep_view(m.results)),
    "alpha_choice": Section(lambda m: nulls.choice_view(m.results), inside="alpha_sweep"),
    "null": Section(lambda m: nulls.null_view(m.results), inside="alpha_sweep"),
    "calibration": Section(lambda m: calibration.view(m.results), inside="alpha_sweep"),
    "people": Section(_people),
    "leakage": Section(lambda m: leakage.view(m.results)),
    "audit": Section(lambda m: audit.view(m.results)),
    "ability": Section(lambda m: ability.view(m.results)),
    "neurons": Section(_neurons),
    "single_neurons": Section(lambda m: neurons.section(m.results)),
    "examples": Section(_examples),
    "glossary": Section(_glossary),
    "this_run": Section(_this_run),
}
