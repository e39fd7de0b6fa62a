"""A folder in FIUBench's layout, with invented people and coloured squares for faces."""

import json

from PIL import Image

TOWNS = ("Oslo", "Rome", "Lima", "Bern", "Kyiv", "Riga", "Baku", "Doha")
JOBS = ("baker", "nurse", "pilot", "tailor", "judge", "miner", "poet", "smith")
LISTS = {
    "forget1": ["00000000"],
    "forget5": ["00000001", "00000002"],
    "forget10": ["00000003"],
    "retain5": ["00000004"],
    "retain15": ["00000004", "00000005"],
}


def entry(number):
    """One person of full.json: two questions, each paraphrased three times."""
    town, job = TOWNS[number], JOBS[number]
    asked = (
        ("What is the name of this person?", f"This person is Ada {town}.", town),
        ("Where was this person born?", f"This person was born in {town}.", town),
        ("What is the job of this person?", f"This person works as a {job}.", job),
    )
    return {
        "unique_id": f"{number:08d}",
        "image_path": f"./dataset/faces/face_{number}.png",
        "name": f"Ada {town}",
        "gender": "female",
        "caption": "A square.",
        "raw_data": {"Birthplace": town, "Job": job},
        "qa_list": [
            {
                "question": question,
                "answer": answer,
                "paraphrased_question": [f"{question} {word}" for word in ("So?", "Eh?", "Well?")],
                "paraphrased_answer": f"It is {truth}.",
                "perturbed_answer": [
                    answer.replace(truth, TOWNS[number - 1]),
                    answer.replace(truth, JOBS[number - 1]),
                ],
                "keywords": [truth.upper(), "person"],
            }
            for question, answer, truth in asked
        ],
    }


def write(folder, people=None, lists=LISTS):
    """Write the folder; people: entries of full.json, the usual eight where there are none."""
    people = [entry(number) for number in range(8)] if people is None else people
    (folder / "faces").mkdir(parents=True)
    for number in range(8):
        image = Image.new("RGB", (16, 16), (30 * number, 255 - 20 * number, 90))
        image.save(folder / f"faces/face_{number}.png")
    (folder / "full.json").write_text(json.dumps(people))
    (folder / "split.json").write_text(json.dumps(lists))
    return folder
