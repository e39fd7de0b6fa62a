"""A run's folder → report.html: one file that opens from disk and asks the network for nothing."""

from collections.abc import Mapping
from pathlib import Path

import jinja2
import markupsafe
import yaml

from manu_jax.folder import write_atomic
from manu_jax.report import distances, examples, headline, inputs, leakage, numbers, plots
from manu_jax.report.results import load_results

TEMPLATE = "report.html.jinja"


def render(
    directory: str | Path,
    portraits: Mapping[str, bytes] | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """Write `directory`/report.html from the run's files and return its path.

    Reads results.json, evaluation/, the masks, versions.json. `portraits` holds PNG or JPEG files
    by person ID; None: those of `directory`/portraits. A person without one is shown by their ID.
    names: of people by ID, beside those of the request.
    Raises ManuError that names what is missing or damaged.
    """
    directory = Path(directory)
    results = load_results(directory)
    items = inputs.load_items(directory, results)
    counts = inputs.load_counts(directory, results)
    versions = inputs.load_versions(directory)
    pictures = inputs.data_uris(
        inputs.load_portraits(directory) if portraits is None else portraits
    )
    kinds = numbers.kinds_of_question(results)
    chance = numbers.chance(results, items, "classification") if "classification" in kinds else None
    main, others = numbers.tables(results)
    people = numbers.people(results, items)
    shown = examples.examples(results, items, names)
    found = results.leakage.get(results.headline)
    leakage_attributes, leakage_grid = leakage.grid(found, dict(results.request.people))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("manu_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda plot: markupsafe.Markup(plot.svg)
    html = environment.get_template(TEMPLATE).render(
        name=directory.resolve().name,
        results=results,
        headline=headline.headline(results, chance),
        facts=numbers.facts(results),
        tiles=numbers.tiles(results),
        main_tables=main,
        other_tables=others,
        kinds=headline.joined([numbers.TASK_TITLES[task].lower() for task in kinds]),
        rows_only=[name for name, parts in counts.items() if parts and parts[0].is_of_rows],
        chance=None if chance is None else numbers.percent(chance),
        sweep=plots.sweep_plots(results.alpha_sweep, results.headline),
        legend=plots.legend(results.alpha_sweep, results.headline),
        maps=plots.heat_maps(counts),
        largest_share=numbers.percent(plots.largest_share(counts)),
        counts=counts.get(results.headline, []),
        people=plots.people_plots(people),
        people_items=numbers.item_range(people),
        leakage_text=leakage.sentence(
            found, results.headline, str(results.config.get("erase", "both"))
        ),
        leakage_bars=leakage.bars(results.leakage),
        leakage_attributes=leakage_attributes,
        leakage_grid=leakage_grid,
        leakage_legend=leakage.LEGEND,
        comparisons=distances.tables(results),
        examples=shown,
        rule=examples.RULE,
        pictures={e.person: pictures[e.person] for e in shown if e.person in pictures},
        config=yaml.safe_dump(dict(results.config), sort_keys=False, allow_unicode=True),
        versions=versions,
        total_seconds=sum(results.timings.values()),
    )
    path = directory / "report.html"
    write_atomic(path, html)
    return path


def people_shown(directory: str | Path) -> list[str]:
    """Return the IDs of the people whose portraits `render` shows, for a caller that makes them."""
    directory = Path(directory)
    results = load_results(directory)
    shown = examples.examples(results, inputs.load_items(directory, results))
    return list(dict.fromkeys(example.person for example in shown))
