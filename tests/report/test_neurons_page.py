"""The page of single neurons, and what the report says of them and of other calibration sets."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from test_nulls import rewritten

from manu_jax.evaluation.neurons.kept import (
    Asked,
    Card,
    Looked,
    NeuronRow,
    PatchExample,
    TokenExample,
    kept_file,
    read_looked,
    write_looked,
)
from manu_jax.evaluation.neurons.words import WordEffect
from manu_jax.report.neurons import grids, sentence
from manu_jax.report.render import render
from manu_jax.types import ManuError

PICTURE = "data:image/png;base64,AAAA"
ROW = NeuronRow(
    method="learned", change="removed", total=900, tower="text", layer=1, neuron=42, strength=0.9,
    scored_by="attribution", score=-2.5, p=0.001, q=0.024, p_any=0.2, people=14, labellings=999,
    peak=1200.0, forget=-0.25, forget_low=-0.5, forget_high=-0.1, forget_n=4, kept=0.0,
    kept_low=None, kept_high=None, kept_n=2, words=0.7, words_p=0.01,
)  # fmt: skip
ASKED = tuple(
    Asked(set=name, person=person, attribute=attribute, modality=form)
    for name, person in (("forget", "004"), ("kept", "001"))
    for attribute in ("pet", "food")
    for form in ("image", "text")
)


def looked():
    token = TokenExample(
        set="forget", person="004", modality="text", before="of Marlo", token=" <Venn>",
        after="?\n", value=3.25,
    )  # fmt: skip
    patch = PatchExample(
        set="kept", person="001", picture="abc", what="row 1, column 2", left=0.5, top=0.0,
        width=0.5, height=0.5, value=-1.5,
    )  # fmt: skip
    seen = dataclasses.replace(ROW, tower="vision", neuron=7, q=0.5, p=0.4, peak=3.0, words=None)
    changes = (-1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0)
    words = (WordEffect("Venn", 1.5, 0.025, 3, 39),)
    return Looked(
        method="learned",
        ordered_by="the method’s own score",
        cards=(
            Card(row=ROW, tokens=(token,), patches=(), words=words, changes=changes),
            Card(row=seen, tokens=(), patches=(patch,), words=(), changes=changes),
        ),
        asked=ASKED,
        whole=(-2.0,) * 8,
        pictures={"abc": PICTURE},
        names={"004": "Marlo Venn", "001": "Ada <b>Holm</b>"},
    )


@pytest.fixture
def folder(write_run, tmp_path):
    directory = write_run(tmp_path)
    write_looked(directory / kept_file("learned"), looked())
    rows = [dataclasses.asdict(card.row) for card in looked().cards]
    return rewritten(directory, single_neurons=rows)


class References(HTMLParser):
    """Collects what a page refers to, and its elements."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        for name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
            if name in values:
                self.found.append(values[name])


def parsed(text):
    parser = References()
    parser.feed(text)
    return parser


def test_the_page_refers_to_nothing_outside_itself_but_the_report(folder):
    render(folder)
    text = (folder / "neurons.html").read_text()
    page = parsed(text)
    assert set(page.found) <= {"report.html", PICTURE, *(r for r in page.found if r[0] == "#")}
    identities = {values["id"] for _, values in page.tags if "id" in values}
    assert {one[1:] for one in page.found if one[0] == "#"} <= identities
    assert not re.search(r"https?:|//\w|url\(|@import|fetch\(|XMLHttp", text)
    report = (folder / "report.html").read_text()
    assert 'href="neurons.html"' in report and "text 1·42" in report


def test_a_card_says_what_was_found_and_escapes_what_was_read(folder):
    render(folder)
    text = (folder / "neurons.html").read_text()
    assert "text, layer 1, neuron 42" in text and "vision, layer 1, neuron 7" in text
    assert "<mark> &lt;Venn&gt;</mark>" in text and "Ada &lt;b&gt;Holm" in text
    assert "p 0.001 · q 0.024 · any 0.2" in text and "−0.500 to −0.100, n = 4" in text
    assert text.count('class="badge"') == 2  # q ≤ 0.05, and massive
    assert "learned removed 900 neurons; the foremost 2 are looked at." in text
    assert "1 have massive activations" in text
    assert "All of them out at once: −2.000 on facts to forget, −2.000 on facts kept." in text
    frames = [values for tag, values in parsed(text).tags if tag == "rect"]
    assert {(one["x"], one["y"], one["width"], one["height"]) for one in frames} == {
        ("50.0", "0.0", "50.0", "50.0")
    }


def test_cards_can_be_filtered_sorted_and_reached_by_keys(folder):
    render(folder)
    page = parsed((folder / "neurons.html").read_text())
    cards = [values for tag, values in page.tags if tag == "article"]
    assert [card["data-tower"] for card in cards] == ["text", "vision"]
    keys = {"tower", "layer", "score", "p", "q", "effect", "strength", "massive", "method"}
    for card in cards:
        assert keys <= {name.removeprefix("data-") for name in card} and card["tabindex"] == "-1"
    names = {values.get("name") for tag, values in page.tags if tag in ("select", "input")}
    assert names >= {"tower", "layer", "sort", "clear"}


def test_one_neuron_is_not_told_as_several():
    one = dataclasses.replace(ROW, total=1)
    assert sentence([one]).startswith("learned removed 1 neuron; the foremost one is looked at.")
    assert "removed 900 neurons; the foremost 2 are looked at." in sentence([ROW, ROW])


def test_changes_stand_in_a_grid_for_each_form():
    image, text = grids(ASKED, looked().cards[0].changes, looked().names)
    assert image.modality == "image" and image.attributes == ("pet", "food")
    assert [(name, where) for name, where, _ in image.lines] == [
        ("Marlo Venn", "forget"), ("Ada <b>Holm</b>", "kept"),
    ]  # fmt: skip
    pet, food = image.lines[0][2]
    assert (pet.colour, pet.shade, pet.text) == ("loss", 85, "pet, image: −1.000")
    assert (food.colour, food.shade) == ("gain", 42)
    assert all(cell.shade == 0 for _, _, cells in text.lines for cell in cells)


def test_what_was_kept_reads_back_and_a_damaged_file_is_named(folder):
    path = folder / kept_file("learned")
    assert read_looked(path) == looked()
    path.write_text(path.read_text().replace('"value": 3.25', '"value": "much"'))
    with pytest.raises(ManuError, match="learned.json: damaged.*value is 'much'"):
        render(folder)


def test_without_neurons_there_is_no_page(write_run, tmp_path):
    text = render(write_run(tmp_path)).read_text()
    assert not (tmp_path / "neurons.html").exists() and "A neuron to look at" not in text


def test_the_report_has_a_table_of_other_calibration_sets(write_run, tmp_path):
    own = {"method": "paper", "kind": "own", "share": 1.0, "people": 20, "draw": 0, "chance": 0.1}
    own |= {"jaccard": 1.0, "forget": 0.9, "forget_n": 40, "retain": 0.8, "retain_n": 40}
    rows = [
        own,
        *(own | {"kind": "size", "share": 0.5, "draw": n, "jaccard": 0.4 + n / 5} for n in (0, 1)),
        *(own | {"kind": "order", "draw": n, "forget": 0.8 + n / 5} for n in (0, 1)),
    ]
    directory = rewritten(write_run(tmp_path, sweep=False), calibration=rows)
    page = render(directory).read_text()
    assert "The same masks from other facts to keep" in page and "at random 0.10" in page
    assert "0.50" in page and "0.40 to 0.60, 2 draws" in page
    assert "paper: another order" in page and "paper: 50\u202f% of the kept people" in page
