"""Say how a request is understood, before anything is run: `python -m manu_jax.check FOLDER`.

It writes one page (FOLDER.check.html beside the folder, or --output) with thumbnails, both forms of
each question, the options and where they come from, and what is missing; and the same in short on
the console. With --model it says whether the prompts fit the model, of which no weights are read.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from manu_jax.config import EvaluateSection
from manu_jax.data.folder import Reading, understand
from manu_jax.data.forms import form, has_form
from manu_jax.data.request_people import benchmark_of
from manu_jax.evaluation.suite import check_prompts
from manu_jax.folder import expand_path, write_atomic
from manu_jax.models.loaded import load_without_weights
from manu_jax.report.check import check_page, remarks_on, summary
from manu_jax.run import exit_status
from manu_jax.types import MODALITIES, ManuError

logger = logging.getLogger("manu_jax")

MOST_SHOWN = 20  # faults on the console
TITLE, MOST_HEAD = b"<title>Check of a request", 2000  # of a page, within so many bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 ready, 1 with faults."""
    options = _parser().parse_args(arguments)
    return exit_status(
        lambda: check(options.folder, output=options.output, model=options.model, seed=options.seed)
    )


def check(
    path: str | Path, *, output: str | Path | None = None, model: str | None = None, seed: int = 0
) -> Path:
    """Write the page about the request in folder `path` and return its path.

    output: the page's file; None: beside the folder. model: a folder whose processor counts the
    tokens of the prompts. seed: of the order of options; a run has its own. Raises ManuError, when
    the page is written, with what has to be mended.
    """
    folder = expand_path(path)
    if seed < 0:
        raise ManuError(f"--seed {seed}: expected a number from 0 on.")
    if not folder.is_dir():
        raise ManuError(f"{folder}: no such folder. Give the folder that holds forget.jsonl.")
    page = _page_of(folder.resolve(), output)
    reading = understand(folder, seed=seed)
    remarks = [] if reading.faults else remarks_on(reading)
    fit = "" if model is None or reading.faults else _fits(reading, model)
    folder = folder.resolve()
    write_atomic(page, check_page(reading, remarks, fit))
    for remark in remarks:
        logger.info("- %s", remark)
    if fit:
        logger.info("- model: %s", fit)
    logger.info("%s: open it to see every line", page)
    if reading.faults:
        more = len(reading.faults) - MOST_SHOWN
        shown = [*reading.faults[:MOST_SHOWN], *([f"and {more} more."] if more > 0 else [])]
        raise ManuError("\n  ".join([f"request {folder}: {summary(reading)}", *shown]))
    logger.info("%s", summary(reading))
    return page


def _page_of(folder: Path, output: str | Path | None) -> Path:
    """Return where the page goes; ManuError where another file stands there."""
    page = folder.with_name(f"{folder.name}.check.html") if output is None else expand_path(output)
    if page.exists() and (page.is_dir() or TITLE not in _head(page)):
        raise ManuError(
            f"{page}: it is there already, and no page of an earlier check. Give the name of a new "
            "file with --output."
        )
    return page


def _head(page: Path) -> bytes:
    with open(page, "rb") as file:
        return file.read(MOST_HEAD)


def _fits(reading: Reading, model: str) -> str:
    """Return how long the prompts are in the tokens of a model; ManuError where one is too long."""
    logging.getLogger("manu_jax.evaluation").setLevel(logging.WARNING)  # it tells of a whole run
    loaded = load_without_weights(model)
    benchmark = benchmark_of(reading.entries)
    check_prompts(loaded, benchmark.sets, EvaluateSection(max_people=None))
    facts = benchmark.facts("forget", "retain", "celebrity", "general")
    samples = [
        form(fact, modality, loaded.template)
        for fact in facts
        for modality in MODALITIES
        if has_form(fact, modality)
    ]
    longest = max(sum(count) for count in loaded.count_tokens(samples))
    return f"the longest fact has {longest:,} tokens, its context {loaded.context:,}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m manu_jax.check",
        description="Say how a request is understood, line by line, before anything is run.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the folder that holds forget.jsonl")
    parser.add_argument("--output", metavar="FILE", help="the page (default: FOLDER.check.html)")
    parser.add_argument("--model", metavar="DIR", help="a model's folder: do the prompts fit it?")
    parser.add_argument("--seed", type=int, default=0, help="of the order of options (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
