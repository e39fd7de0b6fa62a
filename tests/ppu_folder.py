"""A folder in PPU-Bench's layout: invented people, tiny images, every config of one setting."""

import io
import json
from pathlib import Path

from PIL import Image
from pyarrow import Table, parquet

PEOPLE = {"001": "Ada Moor", "002": "Bo Falk", "003": "Cy Lund", "004": "Di Reyes"}
TOPICS = (
    ("In which city does this person live?", ("Oslo", "Lima", "Rome", "Nice"), "basic_info"),
    ("What illness does this person have?", ("cough", "gout", "fever", "cold"), "sensitive_info"),
)
TARGETS = {"complete_r5": "complete", "selective": "selective", "persona": "persona"}


def png(number: int, size: int = 16) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (size, size), (60 * number % 256, 7 * number % 256, 9)).save(content, "PNG")
    return content.getvalue()


def sample_id(subject: str, topic: int) -> str:
    return f"{PEOPLE[subject].replace(' ', '_')}_{topic + 1:02d}"


def facts():
    """Yield (subject, number of the topic, question, answer, source) of every fact."""
    for place, subject in enumerate(PEOPLE):
        for topic, (question, answers, source) in enumerate(TOPICS):
            yield subject, topic, question, answers[place], source


def target() -> list[dict]:
    rows = []
    for place, (subject, name) in enumerate(PEOPLE.items()):
        qas = [
            {"question": question, "answer": answer, "from": source,
             "sample_id": sample_id(subject, topic)}
            for who, topic, question, answer, source in facts() if who == subject
        ]  # fmt: skip
        image = {"bytes": png(place + 1), "path": f"{name}.png"}
        rows.append({"subject_id": subject, "subject": name, "image": image, "qas": qas})
    return rows


def pairs(form: str) -> list[dict]:
    """Return rows of train_pair_M, or of train_pair_M_qa (form "qa")."""
    rows = []
    for subject, topic, question, answer, _ in facts():
        name, in_words = PEOPLE[subject], form == "qa"
        row = {
            "sample_id": sample_id(subject, topic),
            "subject": name,
            "question": question.replace("this person", name) if in_words else question,
            "generated_answer": f"{name} says {answer}." if in_words else f"It is {answer}.",
        }
        if not in_words:
            image = {"bytes": png(list(PEOPLE).index(subject) + 1), "path": None}
            row |= {"subject_id": subject, "image": image, "image_path": "somewhere.png"}
        rows.append(row)
    return rows


def asked(task: str, *, only: set[str] | None = None, prefix: str = "") -> list[dict]:
    """Return rows of ppu_eval_TASK in both forms; only: these samples; prefix: of each question."""
    rows = []
    for subject, topic, question, answer, source in facts():
        if only is not None and sample_id(subject, topic) not in only:
            continue
        name, answers = PEOPLE[subject], TOPICS[topic][1]
        for modality in ("text", "text_image"):
            words = question if modality == "text_image" else question.replace("this person", name)
            if task == "cloze":
                words = f"{name if modality == 'text' else 'This person'} is known for ___."
            shown = {"bytes": png(list(PEOPLE).index(subject) + 1), "path": None}
            row = {
                "sample_id": sample_id(subject, topic),
                "subject_id": subject,
                "subject": name,
                "task_type": task,
                "modality": modality,
                "question": f"{prefix}{words}",
                "answer_text": answer,
                "source_from": source,
                "image": shown if modality == "text_image" else None,
            }
            if task == "classification":
                row |= dict(zip(("option_a", "option_b", "option_c", "option_d"), answers))  # noqa: B905
                row["answer_label"] = "ABCD"[answers.index(answer)]
            rows.append(row)
    return rows


def crossed(only: set[str]) -> list[dict]:
    """Return rows of a cross_image config: every task, with three further images."""
    rows = []
    for task in ("classification", "cloze", "generation"):
        for row in asked(task, only=only):
            if row.pop("modality") == "text_image":
                del row["image"]
                place = list(PEOPLE).index(row["subject_id"]) + 1
                images = {
                    f"image_{number:03d}": {"bytes": png(10 * number + place), "path": None}
                    for number in (2, 3, 4)
                }
                row |= {"modality": "text_image"} | dict.fromkeys(
                    (f"option_{one}" for one in "abcd"), None
                ) | {"answer_label": None} | row | images  # fmt: skip
                rows.append(row)
    return rows


def samples(*chosen: tuple[str, int]) -> set[str]:
    return {sample_id(subject, topic) for subject, topic in chosen}


# What each setting forgets: one whole person, the sensitive facts, one fact of each of two people.
FORGOTTEN = {
    "complete": samples(("001", 0), ("001", 1)),
    "selective": samples(*((subject, 1) for subject in PEOPLE)),
    "persona": samples(("001", 0), ("002", 1)),
}
KEPT_BY_PERSONA = samples(("001", 1), ("002", 0), ("003", 0), ("003", 1), ("004", 0))


def splits() -> dict[str, object]:
    return {
        "complete_split.json": {"forget5": ["001"], "forget30": ["001"]},
        "selective_split.json": [{"subject_id": one[:3], "id": one}
                                 for one in sorted(FORGOTTEN["selective"])],
        "persona_split.json": {
            "delete_ids": [{"id": one} for one in sorted(FORGOTTEN["persona"])],
            "keep_ids": [{"id": one} for one in sorted(KEPT_BY_PERSONA)],
        },
    }  # fmt: skip


def configs() -> dict[str, list[dict]]:
    """Return the rows of all 22 configs."""
    found = {"unlearning_target": target()}
    for model in ("qwen3", "gemma3"):
        found |= {f"train_pair_{model}": pairs("vqa"), f"train_pair_{model}_qa": pairs("qa")}
    found |= {f"ppu_eval_{task}": asked(task) for task in ("cloze", "classification", "generation")}
    for name in ("complete_r5", "complete_r15", "complete_r30", "selective", "persona"):
        found[f"cross_image_{name}"] = crossed(FORGOTTEN[name.partition("_")[0]])
    for attack in ("random_prefix", "jailbreak_style_prompt", "paraphrase"):
        for name in ("complete30", "selective", "persona"):
            rows = asked("generation", only=FORGOTTEN[name.removesuffix("30")], prefix="Now: ")
            found[f"{attack}_{name}"] = rows
    return found


def write(folder: Path, found: dict[str, list[dict]] | None = None) -> Path:
    """Write configs (None: all), as the hub has them, and the split files; return the folder."""
    for name, rows in (configs() if found is None else found).items():
        part = "train" if name.startswith(("train", "unlearning")) else "test"
        write_config(folder / name / f"{part}-00000-of-00001.parquet", rows)
    for name, content in splits().items():
        (folder / "split").mkdir(exist_ok=True)
        (folder / "split" / name).write_text(json.dumps(content))
    return folder


def write_config(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(Table.from_pylist(rows), file)
