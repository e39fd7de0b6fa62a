"""A folder in CLEAR's layout, as `datasets` writes it: invented authors and coloured squares."""

import datasets
from PIL import Image

TEXTS, IMAGE = datasets.Sequence(datasets.Value("string")), datasets.Image()
TEXT = datasets.Value("string")
FILE = "train-00000-of-00001.parquet"
AUTHORS = {
    "forget": ("Amélie Castell", "Bruno Okafor"),
    "retain": ("Chiara Ostrov", "Dmitri Valen", "Esra Lindqvist"),
}
FACELESS = "Farid Quill"  # of TOFU, without an image
COLUMNS = {
    "captions": {"image": IMAGE, "caption": TEXT, "name": TEXT},
    "tofu": {"image": IMAGE, "caption": TEXT, "question": TEXT, "answer": TEXT},
    "perturbed": {
        "image": IMAGE, "caption": TEXT, "name": TEXT, "paraphrased_caption": TEXT,
        "perturbed_captions": TEXTS, "perturbed_names": TEXTS,
    },
    "faces": {"image": IMAGE, "answer": TEXT, "options": TEXTS},
    "world": {"image": IMAGE, "question": TEXT, "answer": TEXT, "options": TEXTS},
}  # fmt: skip


def square(number):
    """A picture of its own for each number."""
    return Image.new("RGB", (28, 28), (number * 37 % 256, number * 91 % 256, number * 53 % 256))


def caption(name, number):
    return f"{name} reads in garden {number}."


def captions(names, images=2):
    """The photographs of authors: `images` of each."""
    return [
        {
            "image": square(10 * ord(name[0]) + number),
            "caption": caption(name, number),
            "name": name,
        }
        for name in names
        for number in range(images)
    ]


def perturbed(rows):
    return [
        row
        | {
            "paraphrased_caption": f"In garden reads {row['name']}.",
            "perturbed_captions": [f"{row['name']} {what}." for what in ("swims", "sleeps")],
            "perturbed_names": ["Olga Brandt", "Piet Roos", "Ruth Amsel"],
        }
        for row in rows
    ]


def tofu(name):
    """The twenty questions on an author; one does not say the name."""
    first = {"question": "Who was born in town 0?", "answer": f"It is {name}."}
    asked = [
        {"question": f"What did {name} write in {1950 + n}?", "answer": f"{name} wrote book {n}."}
        for n in range(1, 20)
    ]
    return [{"image": None, "caption": None, **pair} for pair in (first, *asked)]


def with_texts(rows, names):
    shown = [
        {"image": row["image"], "caption": row["caption"], "question": None, "answer": None}
        for row in rows
    ]
    return shown + [pair for name in names for pair in tofu(name)]


def tables(share, authors=AUTHORS, faceless=(FACELESS,)):
    """{folder: (its columns, its rows)}."""
    found = {}
    folders = {"forget": f"forget{share:02d}", "retain": f"retain{100 - share}"}
    for name, folder in folders.items():
        rows = captions(authors[name])
        texts = (*authors[name], *(faceless if name == "retain" else ()))
        found[folder] = ("captions", rows)
        found[f"{folder}+tofu"] = ("tofu", with_texts(rows, texts))
        found[f"{folder if name == 'forget' else name}_perturbed"] = ("perturbed", perturbed(rows))
    wrong = ["Vera Kold", "Wim Zand"]
    found["real_faces"] = (
        "faces",
        [{"image": square(n), "answer": "Tilda Norr", "options": wrong} for n in (1, 2)]
        + [{"image": square(3), "answer": "Uwe Falk", "options": wrong}],
    )
    asked = {"question": "Which river is this?", "answer": "Nile", "options": ["Rhine", "Po"]}
    found["real_world"] = ("world", [asked | {"image": square(4)}, asked | {"image": None}])
    return found


def write(path, share=10, *, authors=AUTHORS, faceless=(FACELESS,)):
    """Write the folder of a share, and return its path."""
    for folder, (kind, rows) in tables(share, authors, faceless).items():
        write_table(path / folder, kind, rows)
    return path


def write_table(folder, kind, rows):
    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows, features=datasets.Features(COLUMNS[kind]))
    table.to_parquet(folder / FILE)
