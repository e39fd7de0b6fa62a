"""Write the whole prompts of every task, modality and number of shots: python make_prompts.py

The files beside it are what a reader compares with MLLMU-Bench's eval.py; the test compares ours.
"""

from collections.abc import Iterator
from pathlib import Path

from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Question
from manu_jax.types import MODALITIES, Template

FOLDER = Path(__file__).parent / "prompts"
TEMPLATES = {
    "llava": Template(),
    "idefics2": Template(
        user="User:",
        image="<image>",
        after_image="",
        close="<end_of_utterance>\nAssistant:",
        end="<end_of_utterance>",
    ),
}
OPTIONS = {"A": "Oslo", "B": "Lima", "C": "Rome", "D": "Cairo"}


def questions(task, modality) -> list[Question]:
    """Three questions; the last is the one that is asked."""
    named = "this person" if modality == "image" else "Ada Lovelace"
    texts = {
        "classification": [
            f"Where was {named} born?",
            f"What is {named}'s job?",
            f"Where does {named} live?",
        ],
        "cloze": [f"{named} was born in __.", f"{named} works as a __.", f"{named} lives in __."],
        "generation": [f"Where does {named} live?"] * 3,
    }[task]
    options = OPTIONS if task == "classification" else None
    answers = [("B", "Lima"), ("D", "Cairo"), ("A", "Oslo")]
    return [
        Question(task, modality, text, answer, "x", options, letter if options else None)
        for text, (letter, answer) in zip(texts, answers, strict=True)
    ]


def prompts() -> Iterator[tuple[str, str]]:
    """Yield (name of the file, prompt)."""
    for family, template in TEMPLATES.items():
        for task in ("classification", "cloze", "generation"):
            for modality in MODALITIES:
                *shots, asked = questions(task, modality)
                for number in (0,) if task == "generation" else (0, 1, 2):
                    name = f"{family}.{task}.{modality}.{number}-shots.txt"
                    yield name, question_prompt(asked, template, shots[:number])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, prompt in prompts():
        (FOLDER / name).write_text(prompt)
