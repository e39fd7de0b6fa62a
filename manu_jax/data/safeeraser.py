"""SafeEraser's records (Chen et al. 2025, arXiv 2502.12520), for its Prompt-Decouple loss.

A JSON file: a list of records, or one record a line (JSON Lines), {"image_path", "SDImage_path",
"unsafe_pairs": [{"question", "model_response", "sd_question", "sd_response"}]}. An image's path is
relative to the file's folder. `SDImage_path` is a harmless image, and `sd_response` the right
answer where the harmful `question` is asked of it: that pairing ties the refusal to the harmful
image and not to the words. `sd_question` is not used, in the authors' code neither.

Differs: texts are as written; the authors' code puts both through `str.capitalize`, which turns all
but the first letter to lower case.
"""

import json
import logging
from pathlib import Path
from typing import Any

from manu_jax.data.cells import short, text_of
from manu_jax.data.images import decode
from manu_jax.folder import expand_path
from manu_jax.types import ManuError, PromptTemplate, Sample, question_sample, raise_faults

PAIR = ("question", "sd_response")

logger = logging.getLogger(__name__)


def decouple_samples(path: str | Path, template: PromptTemplate) -> tuple[Sample, ...]:
    """Return (harmless image, harmful question, right answer) of every pair, in order.

    Pairs whose `sd_response` is empty have no right answer: they are left out, and counted in the
    log. Raises ManuError, with every fault found: what cannot be read, lacks a key, holds something
    else than texts, or does not decode.
    """
    path = expand_path(path)
    samples, faults, num_empty = [], [], 0
    for number, record in enumerate(_records(path)):
        place = f"record {number}"
        if not isinstance(record, dict) or not isinstance(record.get("unsafe_pairs"), list):
            faults.append(f"{place}: expected a mapping with a list of unsafe_pairs.")
            continue
        image = None
        try:
            image = _image(path.parent, record.get("SDImage_path"))
        except ManuError as error:
            faults.append(f"{place}: {error}")
        for index, pair in enumerate(record["unsafe_pairs"]):
            try:
                question, response = _pair(pair)
            except ManuError as error:
                faults.append(f"{place}, pair {index}: {error}")
                continue
            if not response:
                num_empty += 1
            elif image is not None:
                prompt = template.prompt(question, "image")
                reply = template.reply(response)
                samples.append(question_sample(prompt, reply, (image,), key=f"{number}/{index}"))
    if not samples and not faults:
        faults.append("no pairs with a sd_response at all.")
    raise_faults(faults, f"{path}: {len(faults)} faults")
    if num_empty:
        logger.info("%s: left out %d pairs with an empty sd_response", path.name, num_empty)
    return tuple(samples)


def _records(path: Path) -> list[Any]:
    """Return the records of a JSON or JSON Lines file."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            records = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ManuError(f"{path}: can't be read as JSON ({error}). Get it anew.") from None
    if not isinstance(records, list) or not records:
        raise ManuError(f"{path}: expected a list of records, got {short(records)}.")
    return records


def _pair(pair: Any) -> tuple[str, str]:
    """Return the harmful question of a pair, and the right answer with the harmless image."""
    lacking = [key for key in PAIR if not isinstance(pair, dict) or key not in pair]
    if lacking:
        raise ManuError(f"no {' and no '.join(lacking)}. Mend the record.")
    question = text_of(pair["question"], "question")
    if not question:
        raise ManuError("no question. Mend the record.")
    return question, text_of(pair["sd_response"], "sd_response")


def _image(folder: Path, name: Any) -> Any:
    if not isinstance(name, str):
        raise ManuError("no SDImage_path. Mend the record.")
    try:
        return decode(folder / name)
    except ManuError as error:
        raise ManuError(f"the image {name}: {error}") from None
