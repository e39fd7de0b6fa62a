"""The parts of the report on null masks and on alpha: auto."""

import json

from manu_jax.evaluation.analyses.registry import ANALYSES
from manu_jax.report.render import render
from manu_jax.report.results import load_results, write_results

NULL = {
    "statistic": "damage", "null": "people", "value": 0.4, "null_mean": 0.01, "null_low": -0.05,
    "null_high": 0.07, "p": 1 / 51, "groups": 50, "n": 80, "verdict": "better than its null",
}  # fmt: skip
WORSE = {"method": "paper", "value": 0.02, "p": 0.5, "verdict": "no better than its null"}
PLACES = [(name, form) for name in ("forget", "retain") for form in ("image", "text")]


def rewritten(directory, config=None, **changes):
    content = json.loads((directory / "results.json").read_text()) | changes
    content["config"] |= config or {}
    rows = content.pop("rows")
    analyses = {name: content.pop(name) for name in ANALYSES}
    write_results(directory, rows, analyses=analyses, **content)
    return directory


def choices(method, chosen, choice):
    return [
        {"method": method, "alpha": alpha, "set": name, "modality": form, "value": 0.5, "n": 12}
        | {"keep_drop": 0.03, "choice": choice if alpha == chosen else "not chosen"}
        for alpha in (0.0, 0.1, 0.3)
        for name, form in PLACES
    ]


def test_a_mask_no_better_than_its_null_is_called_so(write_run, tmp_path):
    rows = [{"method": "learned"} | NULL, NULL | WORSE]
    directory = rewritten(write_run(tmp_path, sweep=False), null=rows)
    page = render(directory).read_text()
    assert "<b>No better than its null: paper.</b>" in page
    assert "better than its null, 50 for other people" in page
    assert "+40.0" in page and "−5.0 to +7.0" in page and "p" in page
    # Without them the report says nothing of nulls.
    assert "masks for nobody" not in render(rewritten(directory, null=[])).read_text()


def test_the_chosen_alpha_stands_where_a_given_one_does(write_run, tmp_path):
    directory = write_run(tmp_path, sweep=False)
    method = load_results(directory).config["method"] | {"alpha": "auto"}
    rows = choices("learned", 0.3, "chosen")
    rewritten(directory, config={"method": method}, alpha_choice=rows)
    page = render(directory).read_text()
    assert "30\u202f%, chosen" in page and "no more than 3 points" in page
    assert "stays within the bound" not in page
    rows = choices("learned", 0.1, "chosen, beyond the bound")
    rewritten(directory, alpha_choice=rows)
    page = render(directory).read_text()
    assert "10\u202f%, chosen" in page
    assert (
        "<b>No share stays within the bound for learned: what loses least was chosen.</b>" in page
    )
