"""SafeEraser's records (Chen et al. 2025, arXiv 2502.12520), for its Prompt-Decouple loss.

A JSON file: a list of records {"image_path", "SDImage_path", "unsafe_pairs": [{"question",
"model_response", "sd_question", "sd_response"}]}. An image's path is relative to the file's folder.
`SDImage_path` is a harmless image, `sd_question` a question about it of the kind that is asked of
the harmful one, and `sd_response` its right answer.
"""

import json
from pathlib import Path
from typing import Any

from manu_jax.folder import expand_path
from manu_jax.types import ManuError, Sample, Template, question_sample, raise_faults

PAIR = ("sd_question", "sd_response")


def decouple_samples(path: str | Path, template: Template) -> tuple[Sample, ...]:
    """Return (harmless image, question, right answer) of every pair, in order.

    Raises ManuError, with every fault found: what cannot be read, lacks a key, or does not decode.
    """
    path = expand_path(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManuError(f"{path}: can't be read as JSON ({error}). Get it anew.") from None
    if not isinstance(records, list) or not records:
        raise ManuError(f"{path}: expected a list of records, got {str(records)[:60]!r}.")
    samples, faults = [], []
    for number, record in enumerate(records):
        place = f"record {number}"
        if not isinstance(record, dict) or not isinstance(record.get("unsafe_pairs"), list):
            faults.append(f"{place}: expected a mapping with a list of unsafe_pairs.")
            continue
        image = _image(path.parent, record.get("SDImage_path"), place, faults)
        for index, pair in enumerate(record["unsafe_pairs"]):
            values = [str(pair.get(key) or "") if isinstance(pair, dict) else "" for key in PAIR]
            if not all(value.strip() for value in values):
                faults.append(f"{place}, pair {index}: no {' or '.join(PAIR)}. Mend the record.")
            elif image is not None:
                prompt = template.prompt(values[0].strip(), "image")
                reply = template.reply(values[1].strip())
                samples.append(question_sample(prompt, reply, (image,), f"{number}/{index}"))
    if not samples and not faults:
        faults.append("no pairs at all.")
    raise_faults(faults, f"{path}: {len(faults)} faults")
    return tuple(samples)


def _image(folder: Path, name: Any, place: str, faults: list[str]) -> Any:
    from PIL import Image

    if not isinstance(name, str):
        faults.append(f"{place}: no SDImage_path. Mend the record.")
        return None
    try:
        return Image.open(folder / name).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        faults.append(f"{place}: the image {name} does not decode ({error}). Download it again.")
        return None
