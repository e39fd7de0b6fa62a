"""A made-up run folder with every file that the report reads; numbers seeded and plausible."""

import atexit
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from manu_jax.arrays import write_arrays
from manu_jax.edits import masks
from manu_jax.evaluation.analyses.differences import Difference, differences
from manu_jax.evaluation.analyses.leakage import ModelLeakage, find_leakage
from manu_jax.evaluation.audit.attack import AuditRow
from manu_jax.evaluation.suite import stored_records
from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.report.results import write_results

MODELS = ("vanilla", "retrained", "learned", "gradient", "paper", "official-code", "random")
PEOPLE = (
    ("004", "Marlo Venn"),
    ("011", "Ines Okafor"),
    ("023", "Tobias Quill"),
    ("037", "Leona Hartwig"),
)
KEPT = tuple(f"{i:03d}" for i in (1, 2, 3, 5, 6, 7, 8, 9, 10, 12))
OTHERS = {"celebrity": tuple(f"c{i}" for i in range(4)), "general": ("",)}
ATTRIBUTES = {
    "hometown": ("Lisbon", "Tromsø", "Quito", "Nairobi"),
    "occupation": ("glass blower", "harbour pilot", "beekeeper", "notary"),
    "pet": ("a grey parrot", "a tortoise", "two ferrets", "a whippet"),
    "instrument": ("the oboe", "the cello", "the accordion", "the harp"),
    "food": ("plum dumplings", "saffron rice", "pickled herring", "lentil soup"),
}
LETTERS = "ABCD"
# Share known: (forget image, forget text, kept)
KNOWN = {
    "vanilla": (1.0, 1.0, 1.0),
    "retrained": (0.0, 0.0, 1.0),
    "learned": (0.03, 0.06, 0.95),
    "gradient": (0.25, 0.5, 0.96),
    "paper": (0.93, 0.97, 0.95),
    "official-code": (0.97, 1.0, 0.93),
    "random": (0.98, 0.97, 0.9),
}
SIZES = {"text": (3, 1024), "vision": (2, 512)}
ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.5)


# What was written by then, by its settings.
WRITTEN: dict[str, Path] = {}


def write_run(directory: Path, **settings: Any) -> Path:
    """Write the folder (see _write) and return it; a second one of the same settings is a copy."""
    key = repr(sorted(settings.items()))
    if key not in WRITTEN:
        made = tempfile.TemporaryDirectory(prefix="fake_run-")
        atexit.register(made.cleanup)
        WRITTEN[key] = _write(Path(made.name), **settings)
    shutil.copytree(WRITTEN[key], directory, dirs_exist_ok=True)
    return directory


def _write(
    directory: Path,
    *,
    known: dict[str, tuple[float, float, float]] = KNOWN,
    headline: str = "learned",
    models: tuple[str, ...] = MODELS,
    sweep: bool = True,
    audit: bool = False,
    seed: int = 0,
) -> Path:
    """Write the folder itself. `known`: what each model knows of whom."""
    random = np.random.default_rng(seed)
    rows = []
    for model in models:
        for where in ("forget", "test", "retain", "celebrity", "general"):
            for task in ("classification", "generation", "cloze", "likelihood"):
                for modality in ("image", "text"):
                    share = _share(known[model], where, modality)
                    items = _items(where, task, modality, share, random)
                    path = directory / "evaluation" / model / f"{where}.{task}.{modality}.jsonl"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text("".join(json.dumps(item) + "\n" for item in items))
                    rows += _rows(model, where, task, modality, items, random)
    points = _sweep(models, known) if sweep else []
    write_results(
        directory,
        rows,
        models=models,
        headline=headline,
        request={
            "people": [{"id": identity, "name": name} for identity, name in PEOPLE],
            "share": 10,
            "num_people": 40,
        },
        analyses={
            "alpha_sweep": points,
            "leakage": [_leakage(directory, model) for model in models],
            "audit": audit_rows(headline) if audit else [],
            "differences": _differences(directory, models),
            "distances": [
                {"model": model, "set": where, "modality": modality, "metric": "kl"}
                | {"value": float(random.random()), "n": 20, "low": 0.0, "high": 1.0}
                for model in models
                for where in ("forget", "retain")
                for modality in ("image", "text")
            ]
            + [
                {"model": model, "set": "forget", "modality": "text", "metric": "ks"}
                | {"value": 0.5, "p": 0.01, "n": 20, "n_reference": 20}
                for model in models
            ],
        },
        config={
            "output": "runs/demo",
            "seed": 0,
            "model": {"path": None},
            "data": {"benchmark": "synthetic", "forget": 10, "num_people": 40},
            "method": {"preset": headline, "kind": "learned", "alpha": 0.3},
            "compare": [{"preset": name, "alpha": 0.3} for name in models[3:]],
        },
        timings={
            "data": 3.1,
            "vanilla": 96.4,
            "retrained": 61.2,
            "scores": 40.7,
            "evaluate": 33.9,
            "scores of learned": 30.5,
            "masks of learned": 0.25,
        },  # fmt: skip
    )
    _masks(directory, models, headline, random)
    (directory / "versions.json").write_text(json.dumps({"python": "3.11.2", "jax": "0.10.2"}))
    (directory / "portraits").mkdir(exist_ok=True)
    for identity in [identity for identity, _ in PEOPLE] + list(KEPT):
        (directory / "portraits" / f"{identity}.png").write_bytes(portrait(identity))
    return directory


def audit_rows(model: str, *, returned: float = 0.4, steps=(1, 4, 64)) -> list[AuditRow]:
    """Return rows of an audit: what is taken out brings `returned` back, and relearning less."""
    rows: list[AuditRow] = []

    def add(attack, value, floor=0.1, **fields):
        around: dict[str, Any] = {"low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05)}
        around |= {"floor_low": max(0.0, floor - 0.05), "floor_high": floor + 0.05}
        for modality in ("image", "text"):
            place: dict[str, Any] = {
                "model": model,
                "attack": attack,
                "modality": modality,
                "n": 20,
            }
            rows.append(AuditRow(value=value, floor=floor, **place, **around | fields))

    add("plain", 0.08)
    add("asked", 0.12, variant="reworded")
    add("removed", returned, variant="zeroed")
    add("rounding", 0.1, variant="int4")
    add("membership", 0.55, floor=0.5, variant="loss", metric="auc")
    for rate in (1e-3, 3e-3):
        for step in steps:
            add("rounding", 0.05 * step**0.5 * rate / 3e-3, 0.02 * step**0.5, variant="steps",
                step=step, rate=rate)  # fmt: skip
    return rows


def portrait(identity: str) -> bytes:
    """Return a small PNG with a face of this person's own colours."""
    random = np.random.default_rng(int(identity))
    shade = lambda low, high: tuple(int(v) for v in random.integers(low, high, 3))  # noqa: E731
    image = Image.new("RGB", (56, 56), shade(150, 240))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 34, 46, 76), fill=shade(20, 160))
    draw.ellipse((16, 8, 40, 40), fill=shade(120, 230))
    for x in (23, 31):
        draw.ellipse((x, 20, x + 3, 23), fill=(20, 20, 20))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _differences(directory: Path, models: tuple[str, ...]) -> list[Difference]:
    records = {name: stored_records(directory / "evaluation" / name) for name in models}
    return [
        difference
        for against in ("vanilla", "retrained")
        if against in models
        for difference in differences(records, against, resamples=50)
    ]


def _leakage(directory: Path, model: str) -> ModelLeakage:
    found, before = (stored_records(directory / "evaluation" / name) for name in (model, "vanilla"))
    return ModelLeakage(model, find_leakage(found, before))


def _share(known: tuple[float, float, float], where: str, modality: str) -> float:
    if where in ("forget", "test"):
        share = known[0] if modality == "image" else known[1]
        return share * (0.85 if where == "test" and modality == "image" else 1)
    return known[2]


def _items(where, task, modality, share, random) -> list[dict]:
    forget = tuple(identity for identity, _ in PEOPLE)
    people = {"forget": forget, "test": forget, "retain": KEPT, **OTHERS}[where]
    names = dict(PEOPLE)
    items = []
    for person in people:
        for attribute, values in ATTRIBUTES.items():
            index = (len(person) + sum(map(ord, person + attribute))) % 4
            is_known = random.random() < share
            said = index if is_known else int(random.integers(4))
            subject = "this person" if modality == "image" else names.get(person, f"No. {person}")
            item = {
                "key": f"{person}/{attribute}",
                "person": person,
                "attribute": attribute,
                "prompt": f"What is the {attribute} of {subject}?",
            }
            image = "<image>\n" if modality == "image" else ""
            if task == "classification":
                options = dict(zip(LETTERS, values, strict=True))
                listed = "\n".join(f"{k}: {v}" for k, v in options.items())
                item["prompt"] = (
                    f"USER: {image}{item['prompt']}\n{listed}\nJust give ONE letter representing "
                    "the answer directly.\nASSISTANT:"
                )
                item |= {"answer": LETTERS[said], "truth": LETTERS[index], "options": options}
                item |= dict.fromkeys(TASKS_BY_NAME[task].metrics.values(), float(said == index))
            elif task == "likelihood":
                item["prompt"] = f"USER: {image}{item['prompt']}\nASSISTANT:"
                score = -0.02 if is_known else -float(random.uniform(1, 4))
                item |= {"answer": "", "truth": values[index], "score": score}
                item |= {"probability": float(np.exp(score)), "recalled": float(is_known)}
            elif task == "cloze":
                item["prompt"] = (
                    f"USER: {image}The {attribute} of {subject} is [Blank].\nPlease **ONLY** "
                    "provide the correct answer that should replace the [Blank].\nASSISTANT:"
                )
                item |= {"answer": values[said], "truth": values[index]}
                item["score"] = float(said == index)
            else:
                item["prompt"] = (
                    f"USER: {image}{item['prompt']}\nAnswer the question based on your trained "
                    "knowledge in one sentence in ENGLISH.\nASSISTANT:"
                )
                sentence = f"The {attribute} of {subject} is {{}}."
                item |= {"answer": sentence.format(values[said])}
                item |= {"truth": sentence.format(values[index])}
                item["score"] = 1.0 if said == index else round(float(random.uniform(0.4, 0.7)), 3)
                item |= dict.fromkeys(("rouge1", "rouge2", "bleu"), item["score"])
                item["exact"] = float(said == index)
            items.append(item)
    return items


def _rows(model, where, task, modality, items, random) -> list[dict]:
    place = {"model": model, "set": where, "task": task, "modality": modality}
    rows = []
    for metric, field in TASKS_BY_NAME[task].metrics.items():
        scores = np.array([item[field] for item in items])
        means = random.choice(scores, (200, len(scores))).mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        rows.append(
            place
            | {
                "metric": metric,
                "value": float(scores.mean()),
                "n": len(scores),
                "low": float(low),
                "high": float(high),
            }
        )
    return rows


def _sweep(models, known) -> list[dict]:
    points = []
    for model in models:
        for alpha in (0.0,) if model in ("vanilla", "retrained") else ALPHAS:
            for modality in ("image", "text"):
                for where in ("forget", "retain"):
                    end = 0.25 + 0.75 * _share(known[model], where, modality)
                    power = 1 if where == "forget" else 4
                    moved = 1.0 if alpha == 0 else (alpha / 0.3) ** power
                    value = max(0.1, 1 - (1 - end) * moved)
                    points.append(
                        {"method": model, "alpha": alpha, "set": where, "modality": modality}
                        | {"value": value, "n": 20}
                    )
    return points


def _masks(directory, models, headline, random) -> None:
    for model in models:
        if model in ("vanilla", "retrained"):
            continue
        mask = {}
        for tower, (layers, neurons) in SIZES.items():
            share = random.uniform(0.05, 0.6, (layers, 1))
            mask[tower] = random.random((layers, neurons)) < share
        if model == "official-code":
            mask = {f"{tower}.up_proj": value for tower, value in mask.items()}
        folder = directory / "methods" / model if model != headline else directory
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(folder / "mask.safetensors", masks.FORMAT, mask, metadata={"made_from": "{}"})
