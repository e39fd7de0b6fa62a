"""A folder in UMU-Bench's layout, as `datasets` writes it: invented people and coloured squares."""

import datasets
from clear_folder import FILE, square

TEXT = datasets.Value("string")
COLUMNS = datasets.Features(
    {
        "ID": TEXT, "image": datasets.Image(), "Biography": TEXT, "MM_QA": TEXT, "UM_QA": TEXT,
        "Classify": TEXT, "Cloze": TEXT, "Generation": TEXT,
    }
)  # fmt: skip
TOWNS = ("Oslo", "Lima", "Kyoto", "Perth")
JOBS = ("baker", "pilot", "judge", "diver")
PEOPLE = {
    "forget": ("Ada Brook",),
    "retain": ("Cleo Drake", "Emil Frost"),
    "celebrity": ("Gina Holt",),
}


def row(number, name):
    """A person's row; what a test changes are Python values, which `write_table` writes as text."""
    town, job = TOWNS[number % 4], JOBS[number % 4]

    def choice(question, right, texts):
        letter = "ABCD"[texts.index(right)]
        options = dict(zip("ABCD", texts, strict=True))
        return {"question": question, "options": options, "answer": f"{letter}. {right}"}

    return {
        "ID": f"{number:03d}",
        "image": square(number),
        "Biography": {"Name": name, "Residence": town, "Job": job},
        "MM_QA": {
            "question": {
                "name": "What is the name of this person?",
                "residence": "Where does this person live?",
                "job": "What does this person do?",
            },
            "answer": {"name": name, "residence": f"This person lives in {town}.", "job": job},
        },
        "UM_QA": {
            "question": {
                "residence": f"Where does {name} live?",
                "job": f"What is the job of {name}?",
            },
            "answer": {"residence": f"{name} lives in {town}.", "job": f"{name} is a {job}."},
        },
        "Classify": {
            "unimodal": {"residence": choice(f"Where does {name} live?", town, TOWNS)},
            "muitimodal": {"residence": choice("Where is this person's home?", town, TOWNS[::-1])},
        },
        "Cloze": {
            "unimodal": {"job": {"question": f"{name} is a __.", "answer": f"{job}."}},
            "muitimodal": {"job": {"question": "This person is a __.", "answer": f"{job}."}},
        },
        "Generation": {
            "unimodal": {
                key: {"question": f"{key} of {name}?", "answer": f"{name}: {value}"}
                for key, value in (("residence", town), ("job", job))
            },
            "muitimodal": {
                key: {"question": f"{key} of this person?", "answer": f"It is {value}"}
                for key, value in (("residence", town), ("job", job))
            },
        },
    }


def tables(share, people=PEOPLE, real="Real_Person_Set"):
    """{folder: its rows}."""
    folders = {"forget": f"forget_{share}", "retain": f"retain_{100 - share}", "celebrity": real}
    numbers = iter(range(1, 1000))
    return {
        folder: [row(next(numbers), name) for name in people[where]]
        for where, folder in folders.items()
    }


def write(path, share=5, *, people=PEOPLE, real="Real_Person_Set"):
    """Write the folder of a share, and return its path."""
    for folder, rows in tables(share, people, real).items():
        write_table(path / folder, rows)
    return path


def write_table(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        name: [one[name] if name in ("ID", "image") else _written(one[name]) for one in rows]
        for name in COLUMNS
    }
    datasets.Dataset.from_dict(columns, features=COLUMNS).to_parquet(folder / FILE)


def _written(value):
    return value if isinstance(value, str) or value is None else repr(value)
