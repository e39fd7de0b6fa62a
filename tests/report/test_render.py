"""report.html: whole, self-contained, and its numbers are those of results.json."""

import html
import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest

from manu_jax.evaluation.analyses.leakage import FactState, Leakage
from manu_jax.evaluation.analyses.registry import ANALYSES
from manu_jax.evaluation.metrics import Interval
from manu_jax.report import examples, inputs, numbers, plots
from manu_jax.report.leakage import LEGEND, MOST_PEOPLE, grid, sentence
from manu_jax.report.numbers import signed
from manu_jax.report.render import people_shown, render
from manu_jax.report.results import load_results, write_results
from manu_jax.types import ManuError

VOID = {"meta", "img", "br", "path", "circle", "use", "rect", "line", "link", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order; collects tables (rows of texts), attributes, headings."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.faults, self.attributes = [], [], []
        self.tables, self.text = [], []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} stays open" for tag in self.stack]

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th") and self.tables:
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.stack or self.stack[-1] != tag:
            self.faults.append(f"</{tag}> inside {self.stack[-3:]}")
        else:
            self.stack.pop()

    def handle_data(self, data):
        if "style" not in self.stack:
            self.text.append(data)
        if "td" in self.stack or "th" in self.stack:
            self.tables[-1][-1][-1] += data.strip() + " "


@pytest.fixture(scope="module")
def page(run_folder):
    return Page(render(run_folder).read_text())


def copied(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


def rewritten(directory, **changes):
    """Write results.json of `directory` again with other rows, models or sweep."""
    content = json.loads((directory / "results.json").read_text()) | changes
    rows = content.pop("rows")
    analyses = {name: content.pop(name) for name in ANALYSES}
    write_results(directory, rows, analyses=analyses, **content)
    return directory


def test_html_is_well_formed(page):
    assert page.faults == []


def test_nothing_is_asked_of_the_network(run_folder, page):
    text = render(run_folder).read_text()
    assert "http://" not in text and "https://" not in text and "//cdn" not in text
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data"):
            assert value.startswith(("data:image/", "#")), (tag, name, value[:60])
    assert not [tag for tag, *_ in page.attributes if tag in ("script", "link", "iframe")]


def test_every_row_of_results_stands_in_a_table(run_folder, page):
    results = load_results(run_folder)
    main, others = numbers.tables(results)
    drawn = [table for table in page.tables if table[0] and "Forget lower" in " ".join(table[0])]
    assert len(drawn) == len(main + others)
    seen = set()
    for table in drawn:
        for line in table[2:]:
            seen.update(
                (line[0].split()[0], cell.split()[0], cell.split()[-1]) for cell in line[1:]
            )
    for row in results.rows:
        value = numbers.number(row.value, row.metric)
        assert (row.model, value, numbers.interval_text(row).split()[-1]) in seen, row


def test_cells_stand_in_their_own_row_and_column(run_folder, page):
    results = load_results(run_folder)
    table = next(t for t in page.tables if t[0] and "Forget lower" in " ".join(t[0]))
    columns = [
        (where, modality)
        for where in ("forget", "test", "retain", "celebrity", "general")
        for modality in ("image", "text")
    ]
    assert [line[0].split()[0] for line in table[2:]] == list(results.models)
    for line in table[2:]:
        for (where, modality), cell in zip(columns, line[1:], strict=True):
            row = results.row(line[0].split()[0], (where, "classification", modality), "accuracy")
            assert cell.split() == [
                f"{100 * row.value:.1f}",
                f"{100 * row.low:.0f}–{100 * row.high:.0f}",
            ]


def test_every_plot_and_picture_has_words(page):
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(pictures) == 10 and all(pictures)
    assert len(labels) == 6 and all(len(label) > 60 for label in labels)
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_plots_use_only_colours_of_the_page(run_folder):
    text = render(run_folder).read_text()
    body = text[text.index("<body>") :]
    assert not re.search(r"(fill|stroke): ?#", body)
    defined = set(re.findall(r"(--[\w-]+):", text))
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= defined


def test_rendering_twice_gives_the_same_bytes(run_folder):
    assert render(run_folder).read_bytes() == render(run_folder).read_bytes()


def test_config_versions_and_times_are_shown(page):
    text = " ".join(page.text)
    for part in ("benchmark: synthetic", "0.10.2", "96.4 s", "235.3 s", "learned 30.8 s"):
        assert part in " ".join(text.split())


def test_names_and_answers_cannot_inject_markup(run_folder, tmp_path):
    directory = copied(run_folder, tmp_path)
    evil = '<script>alert("x")</script>'
    content = json.loads((directory / "results.json").read_text())
    content["request"]["people"][0]["name"] = evil
    rewritten(directory, request=content["request"])
    for path in (directory / "evaluation" / "learned").glob("forget.*.jsonl"):
        items = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(item | {"answer": evil}) + "\n" for item in items))
    text = render(directory).read_text()
    assert "<script" not in text and html.escape(evil) in text.replace("&#34;", "&quot;")
    assert Page(text).faults == []


def test_names_with_dollars_and_of_other_scripts_are_drawn_as_they_are(run_folder, tmp_path):
    directory = copied(run_folder, tmp_path)
    names = ("A$AP Ke$ha", "$\\foo{$", "宮崎 駿", "محمد علي")
    content = json.loads((directory / "results.json").read_text())
    for person, name in zip(content["request"]["people"], names, strict=True):
        person["name"] = name
    text = render(rewritten(directory, request=content["request"])).read_text()
    drawn = [
        part for part in re.findall(r"<svg.*?</svg>", text, re.S) if "percent right per" in part
    ]
    assert len(drawn) == 2
    assert all(re.search(rf">{re.escape(name)}</text>", part) for part in drawn for name in names)


def test_wide_letters_are_counted_as_two_where_names_are_cut():
    assert plots._short("宮" * 11) == "宮" * 11 and plots._short("宮" * 12) == "宮" * 10 + "…"
    assert plots._short("a" * 22) == "a" * 22 and plots._short("a" * 23) == "a" * 21 + "…"


def test_missing_and_damaged_evaluation_files_are_all_named(run_folder, tmp_path):
    directory = copied(run_folder, tmp_path)
    gone = directory / "evaluation" / "learned" / "forget.cloze.text.jsonl"
    cut = directory / "evaluation" / "vanilla" / "retain.generation.image.jsonl"
    poor = directory / "evaluation" / "retrained" / "forget.cloze.image.jsonl"
    gone.unlink()
    cut.write_text(cut.read_text()[:-20])
    poor.write_text('{"key": "004/pet", "answer": ""}\n')
    with pytest.raises(ManuError) as error:
        render(directory)
    assert f"{gone}: No such file" in str(error.value)
    assert f"{cut}: line 50: broken JSON" in str(error.value)
    assert f"{poor}: line 1 lacks person, prompt, truth, score" in str(error.value)


@pytest.mark.parametrize(
    ("task", "value", "fault"),
    [
        ("cloze", {"score": None}, "has no number for score"),
        ("generation", {"exact": None}, "has no number for exact"),
        ("generation", {"score": "0.5"}, "has no number for score"),
        ("cloze", [1], "is no record"),
    ],
)
def test_records_of_the_wrong_kind_are_named(run_folder, tmp_path, task, value, fault):
    path = copied(run_folder, tmp_path) / "evaluation" / "vanilla" / f"forget.{task}.text.jsonl"
    first, *rest = path.read_text().splitlines()
    first = {**json.loads(first), **value} if isinstance(value, dict) else value
    path.write_text("\n".join([json.dumps(first), *rest]) + "\n")
    with pytest.raises(ManuError, match=f"{path.name}: line 1 {fault}"):
        render(tmp_path / "run")


def test_a_missing_or_damaged_mask_is_named(run_folder, tmp_path):
    directory = copied(run_folder, tmp_path)
    (directory / "mask.safetensors").unlink()
    (directory / "methods" / "paper" / "mask.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ManuError) as error:
        render(directory)
    assert str(directory / "mask.safetensors") in str(error.value)
    assert str(directory / "methods" / "paper" / "mask.safetensors") in str(error.value)


def test_missing_rows_are_called_not_measured(run_folder, tmp_path):
    directory = copied(run_folder, tmp_path)
    content = json.loads((directory / "results.json").read_text())
    rows = [
        row
        for row in content["rows"]
        if row["model"] != "paper" and (row["model"], row["set"]) != ("retrained", "general")
    ]
    page = Page(render(rewritten(directory, rows=rows)).read_text())
    tables = [table for table in page.tables if "Forget lower" in " ".join(table[0])]
    lines = [line for table in tables for line in table if line and "paper" in line[0]]
    assert lines and all(cell.split() == ["not", "measured"] for line in lines for cell in line[1:])
    assert "paper not measured / not measured" in " ".join(page.text)
    assert "Cells without a number were not measured." in " ".join(page.text)


def test_what_no_item_could_be_measured_of_is_called_not_measurable(run_folder, tmp_path):
    directory = copied(run_folder, tmp_path)
    rows = json.loads((directory / "results.json").read_text())["rows"]
    for row in rows:
        if row["metric"] in ("rougeL", "rouge1", "rouge2") and row["set"] == "forget":
            row |= {"value": None, "n": 0, "low": None, "high": None}
    for path in (directory / "evaluation").glob("*/forget.generation.*.jsonl"):
        items = [json.loads(line) for line in path.read_text().splitlines()]
        empty = dict.fromkeys(("score", "rouge1", "rouge2"))
        path.write_text("".join(json.dumps(item | empty) + "\n" for item in items))
    page = Page(render(rewritten(directory, rows=rows)).read_text())
    table = next(table for table in page.tables if "n = 0" in " ".join(table[1]))
    cells = [cell for line in table[2:] for cell in line[1:3]]
    assert cells and all(cell.split()[:2] == ["not", "measurable"] for cell in cells)
    assert not any("None" in text for text in page.text)


def test_a_run_without_sweep_retrained_model_or_portraits_still_reports(write_run, tmp_path):
    directory = write_run(tmp_path, models=("vanilla", "learned"), sweep=False)
    shutil.rmtree(directory / "portraits")
    (directory / "versions.json").unlink()
    page = Page(render(directory).read_text())
    text = " ".join(page.text)
    assert page.faults == []
    assert "Not measured: the run has no sweep over α." in text
    # 25 % in multiple choice, nothing in blanks and free answers
    assert "guessing gets 8.3\u202f%; there is no retrained model." in text
    assert not [tag for tag, *_ in page.attributes if tag == "img"]


def test_portraits_can_be_given_and_must_be_pictures(run_folder, tmp_path):
    directory = copied(run_folder, tmp_path)
    shutil.rmtree(directory / "portraits")
    from fake_run import portrait

    people = people_shown(directory)
    assert people[:4] == ["004", "011", "023", "037"] and len(people) == 7
    page = Page(render(directory, {person: portrait(person) for person in people}).read_text())
    assert len([1 for tag, name, _ in page.attributes if (tag, name) == ("img", "src")]) == 10
    with pytest.raises(ManuError, match="portraits of 004, 011: expected PNG or JPEG"):
        render(directory, {"004": b"GIF89a", "011": b""})


def test_examples_show_the_same_question_of_all_three_models(run_folder):
    results = load_results(run_folder)
    items = inputs.load_items(run_folder, results)
    shown = examples.examples(results, items)
    assert [example.is_forgotten for example in shown] == [True] * 7 + [False] * 3
    assert {example.modality for example in shown[:7]} == {"image", "text"}
    assert {example.person for example in shown[:7]} == {"004", "011", "023", "037"}
    for example in shown:
        where = "forget" if example.is_forgotten else "retain"
        assert [answer.who for answer in example.answers] == ["before", "after", "retrained"]
        for model, answer in zip(("vanilla", "learned", "retrained"), example.answers, strict=True):
            records = items[model, where, example.task, example.modality]
            assert any(
                item["person"] == example.person
                and examples.question_of(item) == example.question
                and answer.text.endswith(item["answer"] if "options" not in item else "")
                for item in records
            )


def test_people_to_keep_are_shown_by_their_names(run_folder, tmp_path):
    directory = copied(run_folder, tmp_path)
    text = render(directory, names={"001": "Yara Ullman"}).read_text()
    assert "Yara Ullman · to keep" in text and "Person 002 · to keep" in text


def test_people_average_their_own_items(run_folder):
    results = load_results(run_folder)
    items = inputs.load_items(run_folder, results)
    changes = numbers.people(results, items)
    for modality, lines in changes.items():
        assert [line.name for line in lines] == [name for _, name in results.request.people]
        value = numbers.share_right(results, "learned", ("forget", modality))
        assert sum(line.after for line in lines) / len(lines) == pytest.approx(value, abs=1e-12)
        assert {line.n for line in lines} == {15}  # five of each kind


def test_heat_map_counts_are_those_of_the_mask(run_folder):
    from manu_jax.edits import masks

    counts = inputs.load_counts(run_folder, load_results(run_folder))
    mask, _ = masks.load(run_folder / "mask.safetensors")
    assert [part.tower for part in counts["learned"]] == ["text", "vision"]
    for part in counts["learned"]:
        assert part.pruned_L.tolist() == mask[part.tower].sum(axis=1).tolist()
        assert part.total == mask[part.tower].size
    assert [part.tower for part in counts["official-code"]] == ["text", "vision"]
    assert len(plots.heat_maps(counts)) == 2


def test_numbers_are_printed_alike():
    assert numbers.percent(0.93149) == "93.1\u202f%"
    assert numbers.percent(None) == "not measured"
    assert numbers.number(-0.5, "log_likelihood") == "−0.50"
    assert numbers.number(0.64567, "rougeL") == "0.646"
    assert numbers.number(0.5, "letter_accuracy") == "50.0"


def test_a_probability_is_in_percent_and_no_share_of_right_answers(run_folder):
    _, others = numbers.tables(load_results(run_folder))
    units = {table.metric: table.unit for table in others}
    assert units["probability"] == "%" and units["recall"] == "% right"
    assert numbers.number(0.673, "probability") == "67.3"


def test_every_judged_fact_stands_in_the_leakage_matrix(run_folder, page):
    results = load_results(run_folder)
    table = next(t for t in page.tables if t[0] and "by state" in " ".join(t[0]))
    lines = {line[0].strip(): line for line in table[1:]}
    assert list(lines) == list(results.models)
    leakage = {row.model: row.found for row in results.analyses["leakage"]}
    for model, found in leakage.items():
        counts = [found.count(state) for state in ("both", "image", "text", "neither")]
        assert [int(count) for count in lines[model][1].split()] == [n for n in counts if n]
        assert sum(counts) == len(found.facts) > 10
    cells = [
        value for tag, name, value in page.attributes if name == "class" and "cell state" in value
    ]
    assert len(cells) == len(leakage["learned"].facts)
    assert "facts that the model knew" in " ".join(page.text)


def test_states_are_told_by_a_sign_and_not_by_colour_alone(page):
    signs = {value for _, name, value in page.attributes if name == "data-sign"}
    assert signs == {sign for _, sign in LEGEND.values()}


def test_on_paper_wide_tables_break_their_cells_and_colours_stay(run_folder):
    text = render(run_folder).read_text()
    rules = text[text.index("@media print") : text.index("</style>")]
    assert ".compared td" in rules and "white-space: normal" in rules
    assert "print-color-adjust: exact" in rules


def test_the_test_images_of_a_request_are_not_called_transformed(run_folder, tmp_path, page):
    assert "with a transformed portrait, and by name" in " ".join(page.text)
    directory = copied(run_folder, tmp_path)
    content = json.loads((directory / "results.json").read_text())
    content["config"]["data"]["benchmark"] = "folder"
    for row in content["rows"]:
        if (row["model"], row["set"], row["modality"]) == ("learned", "test", "image"):
            row |= {"value": 0.9, "low": 0.8, "high": 1.0}
    text = render(rewritten(directory, rows=content["rows"], config=content["config"])).read_text()
    assert "transformed" not in " ".join(Page(text).text) + "".join(
        re.findall('title="[^"]*"', text)
    )
    assert "Multiple choice, other images: " in text and "with another image, and by name" in text
    assert "dashed: by another image alone" in text


def test_what_was_left_out_is_told_beside_the_numbers(run_folder, tmp_path, page):
    assert "and counted:" not in " ".join(page.text)
    skipped = {"people beyond evaluate.max_people": 1054, "facts that have no image form": 4}
    text = render(rewritten(copied(run_folder, tmp_path), skipped=skipped)).read_text()
    assert (
        "Not asked, or not measured, and counted: people beyond evaluate.max_people: 1,054; "
        "facts that have no image form: 4." in text
    )


def test_people_who_are_left_out_of_a_plot_are_counted(run_folder, tmp_path, page):
    assert "Left out of a form" not in " ".join(page.text)
    directory = copied(run_folder, tmp_path)
    for path in (directory / "evaluation").glob("*/forget.cloze.text.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[5:]))
    text = render(directory).read_text()
    assert "was not asked every kind of question in it: 1 of 4." in text


def test_a_run_without_leakage_says_so(run_folder, tmp_path):
    page = Page(render(rewritten(copied(run_folder, tmp_path), leakage=[])).read_text())
    assert page.faults == []
    assert "no fact to forget was known before in both forms" in " ".join(page.text)


def test_distances_and_differences_stand_in_tables(run_folder, page):
    results = load_results(run_folder)
    distances = next(t for t in page.tables if t[0] and "KL, nats" in " ".join(t[0]))
    assert [line[0].strip() for line in distances[1:]] == [
        model for model in results.models if model != "retrained"
    ]
    assert all(line[-1].split()[:4] == ["0.50", "p", "=", "0.01,"] for line in distances[1:])
    paired = next(t for t in page.tables if t[0] and "− vanilla" in " ".join(t[0]))
    lines = {line[0].strip(): line[1:] for line in paired[1:]}
    found = next(
        d
        for d in results.analyses["differences"]
        if (d.model, d.against, d.set, d.task, d.modality, d.metric)
        == ("learned", "vanilla", "forget", "generation", "image", "exact")
    )
    assert lines["Forget: free answers"][0].split()[0] == signed(100 * found.value, 1)
    assert len(lines) == 20


def test_signs_are_true_ones_and_nothing_has_none():
    assert [signed(value, 0) for value in (5.4, -5.6, 0.3, -0.3)] == ["+5", "−6", "0", "0"]
    assert signed(-0.004, 2) == "0.00" and signed(-0.006, 2) == "−0.01"


def test_the_grid_is_aligned_by_attribute_with_gaps():
    facts = (
        FactState("a/home", "a", "both", False),
        FactState("a/job", "a", "text", True),
        FactState("b/job", "b", "image", False),
    )
    found = Leakage(facts, 0, 0, None, None, None)
    attributes, lines = grid(found, {"a": "Ada"})
    assert attributes == ("home", "job") and [line.name for line in lines] == ["Ada", "b"]
    assert lines[0].cells == (("home", "both", False), ("job", "text", True))
    assert lines[1].cells == (None, ("job", "image", False))
    assert grid(None, {}) == ((), [])


def test_a_grid_that_shows_the_first_people_alone_says_so(run_folder, tmp_path, page):
    assert "fact by fact: the first" not in " ".join(page.text)
    directory = copied(run_folder, tmp_path)
    content = json.loads((directory / "results.json").read_text())
    own = next(one for one in content["leakage"] if one["model"] == "learned")
    own["facts"] = [
        {**own["facts"][0], "key": f"{number}/pet", "person": str(number)}
        for number in range(MOST_PEOPLE + 3)
    ]
    rewritten(directory, leakage=content["leakage"])
    text = " ".join(" ".join(Page(render(directory).read_text()).text).split())
    assert "learned, fact by fact: the first 20 of 23 people" in text


def test_one_fact_is_not_told_as_several():
    one = Interval(1.0, math.nan, math.nan, 1)
    found = Leakage((FactState("a/home", "a", "both", False),), 1, 0, one, None, one)
    text = sentence(found, "learned", "both")
    assert text.startswith("learned: of 1 fact that the model knew, 1 is forgotten in both forms")
    assert "Not counted: 1 fact that it did not know" in text


def with_unseen(directory, share):
    """Change a run's folder: the models keep `share` of what they keep of used people, of others.

    The answers on unseen people are those on used ones; the numbers of the rows differ.
    """
    content = json.loads((directory / "results.json").read_text())
    extra = [
        {**row, "set": "unseen", "value": share * row["value"], "low": None, "high": None}
        for row in content["rows"]
        if row["set"] == "retain"
    ]
    sweep = [
        {**point, "set": "unseen" if point["set"] == "retain" else point["set"]}
        for point in content["alpha_sweep"]
    ]
    for path in (directory / "evaluation").glob("*/retain.*.jsonl"):
        items = [json.loads(line) for line in path.read_text().splitlines()]
        others = [json.dumps(item | {"person": f"u{item['person']}"}) + "\n" for item in items]
        path.with_name(path.name.replace("retain", "unseen")).write_text("".join(others))
    rewritten(directory, rows=content["rows"] + extra, alpha_sweep=sweep)
    return load_results(directory)


def test_unseen_people_come_first_wherever_one_number_tells_what_was_kept(run_folder, tmp_path):
    results = with_unseen(copied(run_folder, tmp_path), 0.5)
    for tile in numbers.tiles(results)[2:]:
        assert tile.title == "Right on unseen people to keep"
        assert tile.used is not None and tile.after == pytest.approx(tile.used / 2)
        assert f"used ones {numbers.percent(tile.used)}" in tile.notes
    items = inputs.load_items(tmp_path / "run", results)
    kept = [one for one in examples.examples(results, items) if not one.is_forgotten]
    assert kept and all(one.person.startswith("u") for one in kept)
    view = plots.sweep_view(results)
    assert view["is_unseen"] and len(view["sweep"]) == 2
    page = render(tmp_path / "run").read_text()
    assert "more left of the others, whom no method was given." in page
    assert page.index("Retain (used)") < page.index("Retain (unseen)")


def test_without_unseen_people_the_used_ones_are_shown_alone(run_folder, page):
    tiles = numbers.tiles(load_results(run_folder))
    assert [tile.title for tile in tiles[2:]] == ["Right on people to keep"] * 2
    assert all(tile.used is None for tile in tiles)
    text = " ".join(page.text)
    assert "what other people lose was not measured" in text and "Retain (unseen)" not in text


def test_a_plan_in_the_folder_is_linked_from_the_report(run_folder, tmp_path, page):
    assert "plan.html" not in " ".join(page.text)
    directory = copied(run_folder, tmp_path)
    (directory / "plan.html").write_text("<h1>All 3 steps fit on 4 × TPU v5e.</h1>")
    linked = Page(render(directory).read_text())
    assert linked.faults == []
    links = [value for tag, name, value in linked.attributes if (tag, name) == ("a", "href")]
    assert links.count("plan.html") == 1
    assert "the plan that was last made in this folder" in " ".join(linked.text)
