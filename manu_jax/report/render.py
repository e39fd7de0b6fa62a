"""A run's folder → report.html: one file that opens from disk and asks the network for nothing."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from manu_jax.data.record import Benchmark
from manu_jax.folder import expand_path, write_atomic
from manu_jax.report import edits, examples, headline, inputs, neurons, numbers
from manu_jax.report.nouns import further, nouns
from manu_jax.report.results import load_results
from manu_jax.report.sections import Material, all_sections
from manu_jax.types import SETS


def render(
    directory: str | Path,
    portraits: Mapping[str, bytes] | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """Write `directory`/report.html from the run's files and return its path.

    Where neurons were looked at, neurons.html as well, to which it has a link; to plan.html, where
    there is one, it has another.
    Reads results.json, evaluation/, masks, edits, versions.json. `portraits` holds PNG or JPEG
    files by person ID; None: those of `directory`/portraits. A person without one is shown by ID.
    names: of people by ID, beside those of the request.
    Raises ManuError that names what is missing or damaged.
    """
    directory = expand_path(directory)
    results = load_results(directory)
    material = Material(
        results=results,
        items=inputs.load_items(directory, results),
        counts=inputs.load_counts(directory, results),
        edits=edits.load_edits(directory, results),
        versions=inputs.load_versions(directory),
        portraits=inputs.data_uris(
            inputs.load_portraits(directory) if portraits is None else portraits
        ),
        names=names or {},
        plan=inputs.PLAN if (directory / inputs.PLAN).exists() else None,
    )
    html = (
        environment()
        .get_template("page.html.jinja")
        .render(
            name=directory.resolve().name,
            headline=headline.headline(results, material.chance),
            facts=[*numbers.facts(results), *edits.facts(results, material.edits)],
            tiles=numbers.tiles(results),
            sections=_rendered(material),
        )
    )
    looked = neurons.load_all(directory, results)
    if looked:
        template = environment().get_template("neuron_page.html.jinja")
        name = directory.resolve().name
        write_atomic(directory / neurons.PAGE, template.render(name=name, **neurons.page(looked)))
    path = directory / "report.html"
    write_atomic(path, html)
    return path


def render_with_portraits(directory: Path, benchmark: Benchmark) -> Path:
    """Write the report of a run with the portraits and the names of its benchmark's people."""
    people = {person.id: person for name in SETS for person in benchmark.sets[name][::-1]}
    portraits = {
        name: _png(people[name].images[0])
        for name in people_shown(directory)
        if name in people and people[name].images
    }
    names = {identity: person.name for identity, person in people.items()}
    return render(directory, portraits, names)


def people_shown(directory: str | Path) -> list[str]:
    """Return the IDs of the people whose portraits `render` shows, for a caller that makes them."""
    directory = expand_path(directory)
    results = load_results(directory)
    shown = examples.examples(results, inputs.load_items(directory, results))
    return list(dict.fromkeys(example.person for example in shown))


def environment() -> jinja2.Environment:
    """Return what reads the templates; what they are given is escaped."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("manu_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["svg"] = lambda plot: markupsafe.Markup(plot.svg)
    return found


def _rendered(material: Material) -> list[markupsafe.Markup]:
    """Return the sections of the page in order, each with the parts inside it."""
    templates = environment()
    found: dict[str, markupsafe.Markup] = {}
    parts: dict[str, list[tuple[str, markupsafe.Markup]]] = {}
    sections = all_sections()
    one, several = nouns(material.results)
    another, others = further(material.results)
    words = {"one": one, "several": several, "another": another, "others": others}
    for name, section in sorted(sections.items(), key=lambda item: item[1].inside is None):
        view = section.view(material)
        if view is None:
            continue
        if section.template is None:
            template = templates.get_template(f"{name}.html.jinja")
        else:
            template = templates.from_string(section.template.read_text(encoding="utf-8"))
        given = {"results": material.results, "parts": parts.get(name, []), **words}
        html = markupsafe.Markup(template.render(**given, **view))
        if section.inside is None:
            found[name] = html
        else:
            parts.setdefault(section.inside, []).append((view["title"], html))
    return [found[name] for name in sections if name in found]


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
