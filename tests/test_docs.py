"""README, CONTRIBUTING and docs/: short enough, no broken link, no path or name that is gone."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from manu_jax.config import load_config, to_yaml

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_LINES = {"README.md": 150, "CONTRIBUTING.md": 180}

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./-])(?:manu_jax|configs|docs|tests|tools|benchmarks)/[\w./*<>-]*")
MODULE = re.compile(r"python -m (manu_jax[\w.]*)")
TEST = re.compile(r"`(test_\w+)`")
BASH = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
SCRIPT = re.compile(r"<<'END'\n(#!/bin/bash\n.*?)^END$", re.M | re.S)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def missing_paths(text: str) -> list[str]:
    """Return the paths in a page's text that do not exist; `<name>` stands for any name."""
    found = {path.rstrip(".") for path in PATH.findall(text)}
    return sorted(path for path in found if "<" not in path and not list(ROOT.glob(path)))


def broken_links(text: str, page: Path) -> list[str]:
    """Return the relative links in a page's text whose file or heading does not exist."""
    broken = []
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows_by_model(page: Path, number: int = 0) -> dict[str, dict[str, str]]:
    """Return {model: {column: cell}} of a page's first table that begins with "model", or its n-th.

    Marks (bold, code) and what stands in parentheses are no part of a model's name.
    """
    text = page.read_text(encoding="utf-8")
    table = list(re.finditer(r"^\| model \|.*(?:\n\|.*)+", text, re.M))[number]
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()
    )
    columns = [name.rstrip(" ↑↓") for name in head]
    return {
        re.sub(r"[*`]|\(.*\)", "", row[0]).strip(): dict(zip(columns[1:], row[1:], strict=True))
        for row in rows
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_paths_and_commands_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    modules = {name.rstrip(".") for name in MODULE.findall(text)}
    faults = broken_links(text, page) + missing_paths(text)
    faults += sorted(name for name in modules if importlib.util.find_spec(name) is None)
    assert not faults


def test_a_broken_link_and_a_missing_path_are_found():
    text = "[a](docs/none.md) [b](docs/speed.md#nowhere) [c](https://x.org/y) `manu_jax/none.py`"
    assert broken_links(text, README) == ["docs/none.md", "docs/speed.md#nowhere"]
    assert missing_paths(text) == ["docs/none.md", "manu_jax/none.py"]
    assert missing_paths("`tests/models/*_cases.py`, `manu_jax/data/<benchmark>.py`, docs/.") == []


@pytest.mark.parametrize("name", MAX_LINES)
def test_a_page_is_not_longer_than_allowed(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MAX_LINES[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_compiles(page):
    for block in PYTHON.findall(page.read_text(encoding="utf-8")):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_bash_of_a_page_is_read_by_bash(page):
    for block in BASH.findall(page.read_text(encoding="utf-8")):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, f"{done.stderr}\n{block}"


def test_scripts_inside_bash_are_read_by_bash():
    found = [
        script
        for page in PAGES
        for block in BASH.findall(page.read_text(encoding="utf-8"))
        for script in SCRIPT.findall(block)
    ]
    assert found
    for script in found:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, f"{done.stderr}\n{script}"


def test_the_readme_has_python_and_bash():
    assert PYTHON.search(README.read_text(encoding="utf-8"))
    assert BASH.search(README.read_text(encoding="utf-8"))


def test_every_test_that_a_page_names_exists():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    named = {name for page in PAGES for name in TEST.findall(page.read_text(encoding="utf-8"))}
    assert named
    assert not [name for name in sorted(named) if f"def {name}(" not in tests]


def test_the_map_of_the_code_names_files_that_exist():
    text = README.read_text(encoding="utf-8")
    block = re.search(r"^```\nmanu_jax/\n(.*?)^tools", text, re.M | re.S)
    assert block
    names = set(re.findall(r"(?<![\w/])\w+(?:\.py|/)", block[1]))
    assert {"run.py", "models/", "families/"} <= names
    assert not [name for name in sorted(names) if not list((ROOT / "manu_jax").rglob(name))]


def test_every_page_of_docs_is_linked_from_the_readme_or_from_results():
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in (README, ROOT / "docs/results.md")
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link
    }
    assert not [page.name for page in (ROOT / "docs").rglob("*.md") if page.resolve() not in linked]


def test_the_config_beside_the_results_is_what_a_run_writes():
    config = load_config(ROOT / "configs/smollm2.yaml", [])
    written = (ROOT / "docs/results/smollm2.yaml").read_text(encoding="utf-8")
    assert written == to_yaml(config)


def test_the_table_of_the_readme_holds_the_numbers_of_the_results():
    ours, whole = rows_by_model(README), rows_by_model(ROOT / "docs/results.md")
    assert list(ours) == list(whole)
    for model, cells in ours.items():
        assert cells == {column: whole[model][column] for column in cells}


def test_the_table_of_the_real_model_in_the_readme_holds_the_numbers_of_the_results():
    page = ROOT / "docs/results/smollm2.md"
    ours, first, masks = rows_by_model(README, 1), rows_by_model(page), rows_by_model(page, 1)
    whole = {
        **{name: first[name] for name in ("suppress", "NPO", "retrained")},
        "gradient, 1 % of the neurons": masks["gradient, 1 %, 4 rounds"],
    }
    seeds = first["erase, seed 1 alone"], masks["erase, seed 2 alone"]
    assert ours.keys() == whole.keys() | {"erase"}
    for model, cells in ours.items():
        for column, cell in cells.items():
            if model != "erase":
                assert cell == whole[model][column], (model, column)
                continue
            # A mean of two seeds, each of which is rounded.
            pairs = zip(
                cell.split(" / "), *(one[column].split(" / ") for one in seeds), strict=True
            )
            unit = 0.01 if column == "English" else 1
            for mean, one, two in pairs:
                assert abs(float(mean) - (float(one) + float(two)) / 2) <= unit, column
