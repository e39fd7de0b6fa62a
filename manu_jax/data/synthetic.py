"""Write a benchmark of fictitious people in MLLMU-Bench's layout, so that one reader serves both.

    write("runs/demo/data", num_people=40, num_celebrities=10, num_general=40, seed=0)

Nobody in it exists: names, biographies and faces are random, and the README in the folder and every
biography say so. First and last names are shared with others, so that no single word identifies a
person; several people share each value of an attribute, so that the question alone does not give
the answer. Two folders are added to MLLMU-Bench's ten:
`General_Set` (questions that have nothing to do with people; a row is a topic) and `Base_Data`
(what celebrities and topics are known by, for a model that is trained from nothing).

The same arguments give the same bytes. Another seed gives another population: settings are tuned on
one, and reported on another.
"""

import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from manu_jax.data import portraits
from manu_jax.data.forms import with_name
from manu_jax.folder import expand_path, new_folder
from manu_jax.types import ManuError

NOTE = "Synthetic: a person made up by manu_jax, who does not exist."
README = """# A synthetic benchmark, written by manu_jax

Everything in this folder is made up: people, names, biographies, faces (drawn by a program) and the
"celebrities" of Retain_Set. It has the layout of MLLMU-Bench and none of its data; General_Set and
Base_Data are additions. It was written with num_people={num_people}, num_celebrities=\
{num_celebrities}, num_general={num_general}, seed={seed}.
"""
NAME_QUESTION = "What is the name of this person?"
LETTERS = "ABCD"
NUM_CLASSIFICATION = 5  # of the ten attributes, in each modality; the cloze items ask the others
FORGET_PERCENT = (5, 10, 15)
NUM_NAMES = 10  # first names and last names, where that is enough

FIRST_NAMES = (
    "Alba", "Bruno", "Celia", "Dario", "Elena", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Katia",
    "Leo", "Mara", "Nils", "Olga", "Pablo", "Rosa", "Simon", "Tilda", "Ugo", "Vera", "Willem",
    "Yara", "Zeno",
)  # fmt: skip
LAST_NAMES = (
    "Abbot", "Berger", "Castell", "Dumont", "Eriksen", "Falk", "Garner", "Holm", "Ivers", "Jarvis",
    "Keller", "Lindt", "Marsh", "Novak", "Orlov", "Pereira", "Quist", "Rossi", "Sander", "Thorne",
    "Ullman", "Voss", "Winter", "Zeller",
)  # fmt: skip


class Attribute(NamedTuple):
    name: str
    question: str
    cloze: str
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "Birthplace", "In which town was this person born?", "This person was born in __.",
        ("Avonlea", "Brisk", "Corin", "Dunmore", "Evoria", "Fenwick", "Galen", "Harrow", "Ilse",
         "Juno", "Kelso", "Lorne"),
    ),
    Attribute(
        "Residence", "In which city does this person live?", "This person lives in __.",
        ("Oslo", "Lima", "Cairo", "Porto", "Delhi", "Quito", "Turin", "Osaka", "Perth", "Dakar",
         "Malmo", "Austin"),
    ),
    Attribute(
        "Occupation", "What is the job of this person?", "The job of this person is __.",
        ("baker", "pilot", "nurse", "lawyer", "painter", "farmer", "plumber", "dentist", "tailor",
         "judge", "sailor", "chemist"),
    ),
    Attribute(
        "Employer", "For which company does this person work?", "This person works for __.",
        ("Brightwell", "Corvex", "Deltona", "Emberly", "Foxgate", "Granite", "Helix", "Indigo",
         "Jasper", "Kestrel", "Lumina", "Mercato"),
    ),
    Attribute(
        "Hobby", "What is the hobby of this person?", "The hobby of this person is __.",
        ("chess", "sailing", "pottery", "fencing", "archery", "knitting", "surfing", "climbing",
         "juggling", "skating", "fishing", "origami"),
    ),
    Attribute(
        "Food", "What is this person's favourite food?", "This person's favourite food is __.",
        ("sushi", "lasagne", "curry", "paella", "tacos", "goulash", "ramen", "pizza", "falafel",
         "fondue", "pancakes", "risotto"),
    ),
    Attribute(
        "Pet", "Which pet does this person keep?", "The pet of this person is a __.",
        ("parrot", "rabbit", "hamster", "lizard", "ferret", "turtle", "spider", "snake", "canary",
         "goldfish", "hedgehog", "pony"),
    ),
    Attribute(
        "University", "At which university did this person study?", "This person studied at __.",
        ("Norvale", "Eastmere", "Highcliff", "Ashford", "Redmoor", "Stonebury", "Westbrook",
         "Millgate", "Oakhurst", "Silverton", "Thornhill", "Kingsley"),
    ),
    Attribute(
        "Instrument", "Which instrument does this person play?", "This person plays the __.",
        ("piano", "violin", "cello", "flute", "trumpet", "guitar", "harp", "oboe", "drums",
         "clarinet", "banjo", "accordion"),
    ),
    Attribute(
        "Birth year", "In which year was this person born?", "The birth year of this person is __.",
        ("1951", "1955", "1958", "1962", "1966", "1969", "1973", "1977", "1980", "1984", "1988",
         "1993"),
    ),
)  # fmt: skip

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Greece": "Athens", "Austria": "Vienna",
    "Hungary": "Budapest", "Poland": "Warsaw", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Ireland": "Dublin", "Japan": "Tokyo", "China": "Beijing",
    "Kenya": "Nairobi", "Ghana": "Accra", "Cuba": "Havana", "Canada": "Ottawa", "Iran": "Tehran",
    "Iraq": "Baghdad", "Nepal": "Kathmandu", "Serbia": "Belgrade", "Belgium": "Brussels",
    "Ukraine": "Kyiv", "Mongolia": "Ulaanbaatar",
}  # fmt: skip
MOST_GENERAL = 4 * len(CAPITALS)  # two pictures, one capital and one sum in every four topics


def write(
    path: str | Path,
    *,
    num_people: int = 40,
    num_celebrities: int = 10,
    num_general: int = 40,
    seed: int = 0,
) -> Path:
    """Write the benchmark into the new folder `path`, whole or not at all, and return its path.

    forget_5 ⊂ forget_10 ⊂ forget_15 hold that share of the people, rounded, one at least.
    """
    path = expand_path(path)
    _check(path, num_people, num_general=num_general, num_celebrities=num_celebrities)
    rows = _make_people(num_people + num_celebrities, seed)
    people, celebrities = rows[:num_people], rows[num_people:]
    general = _make_general(num_general, num_people + num_celebrities, seed)
    forget_order = np.random.default_rng([seed, 3]).permutation(num_people).tolist()

    numbers = dict(num_people=num_people, num_celebrities=num_celebrities, num_general=num_general)
    with new_folder(path) as folder:
        (folder / "README.md").write_text(README.format(**numbers, seed=seed), encoding="utf-8")
        _write_rows(folder / "Full_Set", people, "evaluation")
        _write_rows(folder / "Test_Set", people, "test", num_files=2)
        _write_rows(folder / "Retain_Set", celebrities, "evaluation")
        _write_rows(folder / "General_Set", general, "evaluation")
        _write_rows(folder / "ft_Data", people, "training")
        _write_rows(folder / "Base_Data", celebrities + general, "training")
        for percent in FORGET_PERCENT:
            forgotten = set(forget_order[: max(1, round(num_people * percent / 100))])
            forget = [row for i, row in enumerate(people) if i in forgotten]
            retain = [row for i, row in enumerate(people) if i not in forgotten]
            _write_rows(folder / f"forget_{percent}", forget, "evaluation")
            _write_rows(folder / f"retain_{100 - percent}", retain, "evaluation")
    return path


def _check(path: Path, num_people: int, *, num_celebrities: int, num_general: int) -> None:
    faults = []
    most = len(FIRST_NAMES) * len(LAST_NAMES)
    if num_people < 2 or num_celebrities < 1 or num_people + num_celebrities > most:
        faults.append(
            f"{num_people} people and {num_celebrities} celebrities: at least 2 and 1, and at most "
            f"{most} together, which is how many names there are"
        )
    if not 1 <= num_general <= MOST_GENERAL:
        faults.append(f"{num_general} general topics: between 1 and {MOST_GENERAL}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        faults.append(f"{path} is there already: give a new folder, or remove it")
    if faults:
        raise ManuError(f"synthetic benchmark: {'; '.join(faults)}.")


def _make_people(count: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of all schemas of `count` people, IDs from 001."""
    names = _draw_names(np.random.default_rng([seed, 0]), count)
    looks = portraits.choose_features(np.random.default_rng([seed, 1]), count)
    rows = []
    for i, (name, features) in enumerate(zip(names, looks, strict=True)):
        random = np.random.default_rng([seed, 2, i])
        values = [attribute.values[int(random.integers(12))] for attribute in ATTRIBUTES]
        items = [
            (attribute.question, attribute.cloze, value, attribute.values)
            for attribute, value in zip(ATTRIBUTES, values, strict=True)
        ]
        in_text = [(with_name(q, name), with_name(c, name), v, pool) for q, c, v, pool in items]
        chosen = random.permutation(len(items))[:NUM_CLASSIFICATION].tolist()
        filled = [k for k in range(len(items)) if k not in chosen]
        person_id = f"{i + 1:03d}"
        biography = {"Note": NOTE, "Name": name}
        biography |= {attribute.name: v for attribute, v in zip(ATTRIBUTES, values, strict=True)}
        rows.append(
            {
                "image": _image(portraits.portrait(features), f"{person_id}.png"),
                "images": [
                    _image(picture, f"{person_id}_{k}.png")
                    for k, picture in enumerate(portraits.transformed(features, random))
                ],
                "ID": person_id,
                "biography": json.dumps(biography),
                "question": NAME_QUESTION,
                "answer": name,
                "Classification_Task": {
                    "Image_Textual_Questions": _choices([items[k] for k in chosen], random),
                    "Pure_Text_Questions": _choices([in_text[k] for k in chosen], random),
                },
                "Generation_Task": [
                    *_open_items(items, "Image_Textual", 0),
                    *_open_items(in_text, "Pure_Text", 0),
                ],
                "Mask_Task": [
                    *_open_items([items[k] for k in filled], "Image_Textual", 1),
                    *_open_items([in_text[k] for k in filled], "Pure_Text", 1),
                ],
                "metadata": _pairs(
                    person_id, [(NAME_QUESTION, name), *((item[0], item[2]) for item in items)]
                ),
            }
        )
    return rows


def _draw_names(random: np.random.Generator, count: int) -> list[str]:
    """Return `count` different names from k × k name parts, each part used about equally often."""
    k = max(NUM_NAMES, math.ceil(math.sqrt(count)))
    first = random.permutation(FIRST_NAMES)[:k].tolist()
    last = random.permutation(LAST_NAMES)[:k].tolist()
    names = [f"{first[i % k]} {last[(i % k + i // k) % k]}" for i in range(count)]
    return random.permutation(names).tolist()


def _make_general(count: int, first_number: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of `count` topics: two pictures, a capital and a sum in turn."""
    random = np.random.default_rng([seed, 4])
    shapes = [(shape, colour) for shape in portraits.SHAPES for colour in portraits.SHAPE_COLOURS]
    shapes = [shapes[i] for i in random.permutation(len(shapes)).tolist()]
    countries = random.permutation(list(CAPITALS)).tolist()
    sums = [(a, b) for a in range(1, 10) for b in range(a, 10)]
    sums = [sums[i] for i in random.permutation(len(sums)).tolist()]
    rows = []
    for i in range(count):
        image = None
        topic_id = f"{first_number + i + 1:03d}"
        if i % 4 < 2:
            shape, colour = shapes.pop()
            image = portraits.shape_picture(shape, colour, random)
            values = {"Shape": shape, "Colour": colour}
            colours = tuple(portraits.SHAPE_COLOURS)
            items = [
                ("Which shape is shown?", "The shape shown is a __.", shape, portraits.SHAPES),
                ("Which colour is shown?", "The colour shown is __.", colour, colours),
            ]
        elif i % 4 == 2:
            country = countries.pop()
            capital = CAPITALS[country]
            values = {"Capital": capital}
            question = f"What is the capital of {country}?"
            cloze = f"The capital of {country} is __."
            items = [(question, cloze, capital, tuple(CAPITALS.values()))]
        else:
            a, b = sums.pop()
            values = {"Sum": str(a + b)}
            near = tuple(str(a + b + step) for step in (-2, -1, 0, 1, 2) if a + b + step > 0)
            items = [(f"What is {a} plus {b}?", f"{a} plus {b} is __.", str(a + b), near)]
        kind = "Pure_Text" if image is None else "Image_Textual"
        rows.append(
            {
                "image": None if image is None else _image(image, f"{topic_id}.png"),
                "ID": topic_id,
                "biography": json.dumps({"Note": "Synthetic: general knowledge.", **values}),
                "question": items[0][0],
                "answer": items[0][2],
                "Classification_Task": {
                    "Image_Textual_Questions": [] if image is None else _choices(items, random),
                    "Pure_Text_Questions": _choices(items, random) if image is None else [],
                },
                "Generation_Task": _open_items(items, kind, 0),
                "Mask_Task": _open_items(items, kind, 1),
                "metadata": _pairs(topic_id, [(item[0], item[2]) for item in items]),
            }
        )
    return rows


def _choices(items: list[tuple], random: np.random.Generator) -> list[dict[str, Any]]:
    """Return classification questions: the right value and three others, in random order."""
    questions = []
    for question, _, value, pool in items:
        others = [other for other in pool if other != value]
        options = [value, *(others[i] for i in random.permutation(len(others))[:3].tolist())]
        options = [options[i] for i in random.permutation(len(options)).tolist()]
        questions.append(
            {
                "Question": question,
                "Options": dict(zip(LETTERS, options, strict=True)),
                "Correct_Answer": LETTERS[options.index(value)],
            }
        )
    return questions


def _open_items(items: list[tuple], kind: str, wording: int) -> list[dict[str, str]]:
    """Return generation items (wording 0: the question) or cloze items (1: with a blank)."""
    return [{"Question": item[wording], "Ground_Truth": item[2], "Type": kind} for item in items]


def _pairs(row_id: str, pairs: list[tuple[str, str]]) -> str:
    return json.dumps([{"ID": row_id, "Question": q, "Answer": a} for q, a in pairs])


def _image(picture: Any, name: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": name}


def _write_rows(
    folder: Path, rows: list[dict[str, Any]], schema: str, *, num_files: int = 1
) -> None:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    arrow_schema = _arrow_schema(schema)
    per_file = math.ceil(len(rows) / num_files)
    for number in range(num_files):
        part = rows[number * per_file : (number + 1) * per_file]
        table = pyarrow.Table.from_pylist(part, arrow_schema)
        file = folder / f"train-{number:05d}-of-{num_files:05d}.parquet"
        parquet.write_table(table, file, write_page_checksum=True)


def _arrow_schema(schema: str) -> Any:
    """Return MLLMU-Bench's columns, with the note by which `datasets` knows images from structs."""
    import pyarrow as pa

    text = pa.string()
    image = pa.struct([("bytes", pa.binary()), ("path", text)])
    if schema == "training":
        columns = [("image", image), ("ID", text), ("metadata", text)]
    else:
        options = pa.struct([(letter, text) for letter in LETTERS])
        choice = pa.struct([("Question", text), ("Options", options), ("Correct_Answer", text)])
        item = pa.struct([("Question", text), ("Ground_Truth", text), ("Type", text)])
        lists = [("Image_Textual_Questions", pa.list_(choice))]
        lists.append(("Pure_Text_Questions", pa.list_(choice)))
        columns = [
            ("images", pa.list_(image)) if schema == "test" else ("image", image),
            *((name, text) for name in ("ID", "biography", "question", "answer")),
            ("Classification_Task", pa.struct(lists)),
            ("Generation_Task", pa.list_(item)),
            ("Mask_Task", pa.list_(item)),
        ]

    def feature(kind: Any) -> Any:
        if kind == image:
            return {"_type": "Image"}
        if pa.types.is_struct(kind):
            return {field.name: feature(field.type) for field in kind}
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type), "_type": "List"}
        return {"dtype": "string", "_type": "Value"}

    features = {name: feature(kind) for name, kind in columns}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(columns, metadata=metadata)
