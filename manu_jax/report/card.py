"""The model card of what a run made, and the stage that sends both to the hub.

A card is public where a report is not: it names neither the people to forget nor any question or
answer. It is made of the numbers in results.json, and of what guessing gets right, alone.
"""

import functools
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import jinja2

from manu_jax import hub, parallel
from manu_jax.context import Run
from manu_jax.folder import write_atomic
from manu_jax.report import audit, inputs, numbers
from manu_jax.report.headline import STATUS_LABELS, headline
from manu_jax.report.nouns import nouns
from manu_jax.report.results import Results, load_results
from manu_jax.types import MODALITIES, RETRAINED, SETS, VANILLA, ManuError

logger = logging.getLogger(__name__)

PUSHED = "pushed.json"  # in the run's folder: {"repository", "address"} of what was sent
FORMS = {"image": "with the image", "text": "by name, in text"}


def card(results: Results, name: str, chance: float | None = None) -> str:
    """Return the model card (Markdown with the hub's fields) of the headline method's model.

    name: of the repository. chance: what guessing gets right in multiple choice, the level where
    there is no retrained model. Raises ManuError where it would name a person to forget, which can
    be by the name of a method or of a repository alone.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("manu_jax.report", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found = headline(results, chance)
    one, several = nouns(results)
    text = environment.get_template("card.md.jinja").render(
        name=name,
        base=_base_model(results),
        num_people=len(results.request.people),
        one=one,
        several=several,
        verdict=STATUS_LABELS[found.status],
        title=found.title,
        has_retrained=RETRAINED in results.models,
        lines=list(_lines(results)),
        audit=audit.sentences(results, results.headline),
        facts=[fact for fact in numbers.facts(results) if fact[0] != "Model"],
    )
    _refuse_names(text, results, name)
    return text


def chance_of(directory: Path, results: Results) -> float | None:
    """Return what guessing gets right in multiple choice, from the answers in a run's folder."""
    if "classification" not in numbers.kinds_of_question(results):
        return None
    return numbers.chance(results, inputs.load_items(directory, results), "classification")


def make_push(run: Run) -> None:
    """Send `unlearned/` and its card to the repository that the config's `push` names, once."""
    name = run.config.push
    if name is None or parallel.exists(run.directory / PUSHED):
        return
    folder = run.directory / "unlearned"
    if not parallel.exists(folder):
        raise ManuError(f"{folder}: no model there to send. Run the stage `unlearn` first.")
    parallel.on_first_process(functools.partial(_push, run, name))


def _push(run: Run, name: str) -> None:
    results = load_results(run.directory)
    address = hub.push(
        run.directory / "unlearned",
        name,
        card=card(results, name, chance_of(run.directory, results)),
        message=f"Unlearned with {results.headline} by manu_jax",
    )
    sent = {"repository": name, "address": address}
    write_atomic(run.directory / PUSHED, json.dumps(sent, indent=1) + "\n")
    logger.info("push: %s", address)


def _lines(results: Results) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (set, form, before, after, retrained) for all that was asked before and after."""
    for where in SETS:
        for modality in MODALITIES:
            before, after, retrained = (
                numbers.share_right(results, model, (where, modality))
                for model in (VANILLA, results.headline, RETRAINED)
            )
            if before is not None and after is not None:
                was, now, never = (numbers.percent(one) for one in (before, after, retrained))
                yield numbers.SET_TITLES[where], FORMS[modality], was, now, never


def _base_model(results: Results) -> str | None:
    """Return the name on the hub of the model before; None: it has none, and its path is ours."""
    model = results.config.get("model") or {}
    named = hub.repository(model.get("path"), "model")
    return None if named is None else named.name


def _refuse_names(text: str, results: Results, repository: str) -> None:
    """Raise ManuError where a card holds a whole name, whatever stands between its words."""
    words = [person.split() for _, person in results.request.people if person.strip()]
    patterns = [r"[\W_]+".join(re.escape(word) for word in name) for name in words]
    found = [one for one in patterns if re.search(rf"(?<!\w){one}(?!\w)", text, re.IGNORECASE)]
    if found:
        raise ManuError(
            f"push: {repository}: its card would name {len(found)} of those to be forgotten, by "
            "the name of a method or of the repository. Give it another name."
        )
