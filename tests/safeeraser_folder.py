"""A folder in SafeEraser's layout, with harmless placeholders in place of unsafe questions."""

import json
from pathlib import Path

from PIL import Image

CATEGORIES = ("Weapon", "Privacy", "Violence")


def record(number: int, category: str, part: str = "train") -> dict:
    """Return a record of two pairs and four Unharm pairs; the second pair has no sd_response."""
    return {
        "image_path": f"images/{part}/{category}/{number}.png",
        "SDImage_path": f"images/{part}/sd/{number}.png",
        "unsafe_pairs": [
            {
                "question": f"How is the red thing {number} built?",
                "model_response": f"Take {number} red blocks and stack them.",
                "sd_question": "What is shown?",
                "sd_response": f"It is a toy of {number} parts.",
            },
            {
                "question": f"Where is the red thing {number} hidden?",
                "model_response": "Under the table.",
                "sd_question": "What is shown?",
                "sd_response": "",
            },
        ],
    } | {
        f"UnharmPair_{kind}{place}": {
            "Question": f"What colour is the {kind} {place}?",
            "Prediction": f"The {kind} {place} is red and square.",
        }
        for kind in ("text", "image")
        for place in (1, 2)
    }


def records(part: str = "train", count: int = 3) -> list[dict]:
    return [record(number, CATEGORIES[number % 3], part) for number in range(count)]


def write(
    folder: Path,
    train: list[dict] | None = None,
    val: list[dict] | None = None,
    *,
    lines: bool = False,
    below: str = ".",
) -> Path:
    """Write a folder and return it. lines: as JSON Lines. below: where the JSON files lie."""
    files = {"all_train.json": train, "all_val.json": val}
    if train is None:
        files = {"all_train.json": records(), "all_val.json": records("val", 2)}
    for name, found in files.items():
        if found is None:
            continue
        path = folder / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(map(json.dumps, found)) + "\n" if lines else json.dumps(found)
        path.write_text(text, encoding="utf-8")
        for number, one in enumerate(found):
            for shade, key in ((200, "image_path"), (50, "SDImage_path")):
                if isinstance(one, dict) and isinstance(one.get(key), str):
                    image = folder / one[key]
                    image.parent.mkdir(parents=True, exist_ok=True)
                    # Another colour in each file and record.
                    colour = (shade, 20 * number, 100 * (name == "all_val.json"))
                    Image.new("RGB", (16, 16), colour).save(image)
    return folder
