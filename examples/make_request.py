"""Write examples/request: what it asks is about people of the demo, who do not exist.

    python examples/make_request.py [FOLDER]

The demo's model (`runs/demo/vanilla`, seed 1 of configs/demo.yaml) knows them.
"""

import json
import sys
import tempfile
from pathlib import Path

from manu_jax.data import mllmu, synthetic

SEED, PEOPLE, CELEBRITIES, GENERAL = 1, 40, 10, 40  # as in configs/demo.yaml
FORGET, RETAIN = 2, 8  # people
QUESTIONS = (
    "In which city does this person live?",
    "What is the job of this person?",
    "For which company does this person work?",
    "What is the hobby of this person?",
    "Which pet does this person keep?",
)
NAME_QUESTION = "What is the name of this person?"


def write(folder: Path) -> None:
    """Write forget.jsonl, retain.jsonl and the portraits into a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        synthetic.write(
            data,
            num_people=PEOPLE,
            num_celebrities=CELEBRITIES,
            num_general=GENERAL,
            seed=SEED,
        )
        benchmark = mllmu.load_benchmark(data, forget=10, seed=SEED)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("forget", FORGET), ("retain", RETAIN)):
        lines = []
        transformed = {person.id: person.images[0] for person in benchmark.sets["test"]}
        for person in benchmark.sets[name][:count]:
            image = f"{person.name.lower().replace(' ', '-')}.png"
            person.images[0].save(folder / image, "PNG")
            images = image
            if person.id in transformed:
                other = image.replace(".png", "-2.png")
                transformed[person.id].save(folder / other, "PNG")
                images = [image, other]
            answers = {fact.question: fact.answer for fact in person.facts}
            for number, question in enumerate(QUESTIONS):
                line = {
                    "subject": person.name,
                    "image": images,
                    "question": question,
                    "answer": answers[question],
                }
                if number == 0:
                    line["name_question"] = NAME_QUESTION
                lines.append(json.dumps(line) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "request")
