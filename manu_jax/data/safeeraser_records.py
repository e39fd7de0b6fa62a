"""SafeEraser's files, record by record: what each says, and what is wrong with it.

What a record holds, and what it is for, says safeeraser.py.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.data.cells import short, text_of
from manu_jax.data.images import decode
from manu_jax.types import ManuError

CATEGORIES = ("Violence", "Weapon", "Privacy", "Sex", "HateSpeech", "IllegalActivity")
TRAIN, VAL = "all_train.json", "all_val.json"
PLACES = (".", "dataset")  # where they lie, from the benchmark's folder
UNHARM = ("UnharmPair_text1", "UnharmPair_text2", "UnharmPair_image1", "UnharmPair_image2")
UNHARM_KEYS = ("Question", "Prediction")
EMPTY_UNHARM = "Unharm pairs with an empty Question or Prediction"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A harmful question with the unsafe answer, and the right one with the harmless image."""

    question: str
    response: str
    sd_response: str


@dataclasses.dataclass(frozen=True)
class Unsafe:
    """A record: an image, its harmless counterpart, and what is asked of both.

    kept: (key of UNHARM, question, answer).
    """

    id: str
    category: str
    image: Any
    sd_image: Any
    pairs: tuple[Pair, ...]
    kept: tuple[tuple[str, str, str], ...]


def unsafe_of(
    folder: Path,
    name: str,
    faults: list[str],
    *,
    skipped: collections.Counter[str],
    prefix: str = "",
) -> list[Unsafe]:
    """Return the records of a file of a benchmark's folder, checked; faults are added to `faults`.

    skipped: where empty Unharm pairs are counted. prefix: of the identities.
    """
    path = found_file(folder, name)
    found: list[Unsafe] = []
    known: dict[Path, Any] = {}
    uses: collections.Counter[str] = collections.Counter()
    for number, record in enumerate(records_of(path)):
        place = f"{name}, record {number}"
        if not has_pairs(record):
            faults.append(f"{place}: expected a mapping with a list of unsafe_pairs.")
            continue
        images = {}
        for key in ("image_path", "SDImage_path"):
            try:
                images[key] = image_of((folder, path.parent), record, key, known=known)
            except ManuError as error:
                faults.append(f"{place}: {error}")
        shown = Path(str(record.get("image_path")))
        category = shown.parent.name
        if "image_path" in images and category not in CATEGORIES:
            faults.append(
                f"{place}: the image {shown} lies in the folder {category!r}, expected one of the "
                f"categories {', '.join(CATEGORIES)}. Keep the folders of the download."
            )
        pairs = list(_pairs(record, place, faults))
        kept = list(_kept_pairs(record, place, faults, skipped=skipped))
        identity = f"{prefix}{category}-{shown.stem}"
        uses[identity] += 1
        if uses[identity] > 1:
            identity = f"{identity}-{uses[identity]}"
        if len(images) == 2:
            image, sd_image = images["image_path"], images["SDImage_path"]
            found.append(Unsafe(identity, category, image, sd_image, tuple(pairs), tuple(kept)))
    return found


def _pairs(record: Mapping[str, Any], place: str, faults: list[str]) -> Iterator[Pair]:
    for index, pair in enumerate(record["unsafe_pairs"]):
        try:
            yield pair_of(pair)
        except ManuError as error:
            faults.append(f"{place}, pair {index}: {error}")


def _kept_pairs(
    record: Mapping[str, Any],
    place: str,
    faults: list[str],
    *,
    skipped: collections.Counter[str],
) -> Iterator[tuple[str, str, str]]:
    """Yield the Unharm pairs that a record has."""
    for key in UNHARM:
        pair = record.get(key)
        if pair is None:
            continue
        try:
            lacking = [one for one in UNHARM_KEYS if not isinstance(pair, dict) or one not in pair]
            if lacking:
                raise ManuError(f"no {' and no '.join(lacking)}. Mend the record.")
            question, answer = (text_of(pair[one], one) for one in UNHARM_KEYS)
        except ManuError as error:
            faults.append(f"{place}, {key}: {error}")
            continue
        if question and answer:
            yield key, question, answer
        else:
            skipped[EMPTY_UNHARM] += 1


def file_of(folder: Path, name: str) -> Path | None:
    """Return a file of the benchmark, or None where there is none of that name."""
    return next((folder / one / name for one in PLACES if (folder / one / name).is_file()), None)


def found_file(folder: Path, name: str) -> Path:
    """Return a file of the benchmark; ManuError where there is none of that name."""
    path = file_of(folder, name)
    if path is None:
        raise ManuError(
            f"benchmark {folder}: no {name} there, and none in dataset/ below it. data.path is the "
            f"folder that holds SafeEraser's {TRAIN} and {VAL}, with the images."
        )
    return path


def records_of(path: Path) -> list[Any]:
    """Return the records of a JSON or JSON Lines file."""
    place = ""
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            records = []
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    place = f"line {number}: "
                    records.append(json.loads(line))
        else:
            records = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ManuError(f"{path}: can't be read as JSON ({place}{error}). Get it anew.") from None
    if not isinstance(records, list) or not records:
        raise ManuError(f"{path}: expected a list of records, got {short(records)}.")
    return records


def has_pairs(record: Any) -> bool:
    """Whether a record is a mapping with a list of unsafe_pairs."""
    return isinstance(record, dict) and isinstance(record.get("unsafe_pairs"), list)


def pair_of(pair: Any) -> Pair:
    """Return a pair. Its `model_response` may be missing, as in files that were asked already."""
    needed = ("question", "sd_response")
    lacking = [key for key in needed if not isinstance(pair, dict) or key not in pair]
    if lacking:
        raise ManuError(f"no {' and no '.join(lacking)}. Mend the record.")
    question = text_of(pair["question"], "question")
    if not question:
        raise ManuError("no question. Mend the record.")
    response = text_of(pair.get("model_response"), "model_response")
    return Pair(question, response, text_of(pair["sd_response"], "sd_response"))


def image_of(
    roots: Sequence[Path],
    record: Mapping[str, Any],
    key: str,
    *,
    known: dict[Path, Any] | None = None,
) -> Any:
    """Return the image that a record names, from the first of the folders that has it.

    known: images by their files, which are not decoded again.
    """
    name = record.get(key)
    if not isinstance(name, str) or not name.strip():
        raise ManuError(f"no {key}. Mend the record.")
    path = next((root / name for root in roots if os.path.isfile(root / name)), roots[-1] / name)
    known = {} if known is None else known
    try:
        if path not in known:
            known[path] = decode(path)
        return known[path]
    except ManuError as error:
        raise ManuError(f"the image {name}: {error}") from None
