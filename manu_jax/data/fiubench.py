"""FIUBench (Ma et al., ICLR 2025, arXiv 2411.03554; SaFoLab-WISC/FIUBench 8e12cdd): invented faces.

A folder as the hub has it (gray311/FIUBench):

    full.json    a list, of which the first 400 are read: {"unique_id", "image_path", "name",
                 "raw_data", "qa_list": [{"question", "answer", "paraphrased_question" (a text or a
                 list), "paraphrased_answer", "perturbed_answer" (a list), "keywords" (a list)}]}
    split.json   {"forget1" | "forget5" | "forget10" | "retain5" | "retain15": [unique_id]}
    images       at `image_path`, from the folder, or from where its first folders are left out

To forget are the people of one list (`data.forget`), to keep those of no forget list; people of the
other two are neither. Each question is a fact, asked with the face, and by name where its text form
has one. What the authors ask is in fiubench_protocol.py.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from manu_jax.config import DataSection
from manu_jax.data.biography import facts_of
from manu_jax.data.cells import short, text_of, truths_of
from manu_jax.data.fiubench_protocol import Asked, probes_of
from manu_jax.data.forms import has_form, question_and_answer
from manu_jax.data.images import decode
from manu_jax.data.probes import Probe
from manu_jax.data.prompts import refuse_shots
from manu_jax.data.record import Benchmark, Fact, Person, Question
from manu_jax.data.tables import TableReader
from manu_jax.folder import expand_path
from manu_jax.types import MODALITIES, ManuError, PromptTemplate, Set

SHARES = (1, 5, 10)
FULL, SPLIT = "full.json", "split.json"
MOST_PEOPLE = 400  # that the authors read
QA_KEYS = (
    "question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer",
    "keywords",
)  # fmt: skip
OTHER_LISTS = "people of other forget lists"
BEYOND = f"people beyond the first {MOST_PEOPLE}"
EMPTY = "questions with an empty question or answer"


def read(folder: Path, section: DataSection, seed: int) -> Benchmark:
    """Return the people of FIUBench's folder, `section.forget` percent of them to forget.

    Nothing is drawn. Raises ManuError, with every fault found.
    """
    del seed
    return _Reader(expand_path(folder), section.forget).read()


def question_prompt(
    question: Question, template: PromptTemplate, shots: Sequence[Question] = ()
) -> str:
    """Return a question as it is, in the template's turns; ManuError for shots: there are none."""
    refuse_shots(shots, "FIUBench")
    return template.prompt(question.question, question.modality)


@dataclasses.dataclass(frozen=True)
class _Row:
    """A person as the file has them: whose place is "full.json, entry 3, ID 00044363"."""

    place: str
    id: str
    values: Mapping[str, Any]


class _Reader(TableReader):
    """One reading of the benchmark."""

    def __init__(self, path: Path, share: int):
        super().__init__()
        self.path, self.share = path, share
        self.skipped: Counter[str] = Counter()
        self.probes: list[Probe] = []

    def read(self) -> Benchmark:
        rows = list(self._rows())
        lists = self._lists({row.id for row in rows})
        self.raise_faults(f"benchmark {self.path}")
        wanted = lists[f"forget{self.share}"]
        others = {one for name, ids in lists.items() if name.startswith("forget") for one in ids}
        sets: dict[str, tuple[Person, ...]] = {"forget": (), "retain": ()}
        for row in rows:
            where: Set = "forget" if row.id in wanted else "retain"
            if where == "retain" and row.id in others:
                self.skipped[OTHER_LISTS] += 1
                continue
            of_person = tuple(name for name, ids in lists.items() if row.id in ids)
            sets[where] += (self._person(row, where, of_person),)
        for name, people in sets.items():
            if not people:
                self.faults.append(f"{SPLIT}: nobody is left for the set {name}. Mend the lists.")
        self.raise_faults(f"benchmark {self.path}")
        return Benchmark(sets, dict(+self.skipped), probes=tuple(self.probes))

    def _rows(self) -> Iterator[_Row]:
        people = self._json(FULL, list)
        self.skipped[BEYOND] += max(len(people) - MOST_PEOPLE, 0)
        seen: dict[str, int] = {}
        for number, values in enumerate(people[:MOST_PEOPLE]):
            place = f"{FULL}, entry {number}"
            if not isinstance(values, dict):
                self.faults.append(f"{place}: is {short(values)}, expected a mapping. Mend it.")
                continue
            identity = values.get("unique_id")
            if not isinstance(identity, str) or not identity.strip():
                self.faults.append(f"{place}: unique_id is {short(identity)}, expected a text.")
            elif identity in seen:
                self.faults.append(f"{place}: the same unique_id as entry {seen[identity]}.")
            else:
                seen[identity] = number
                yield _Row(f"{place}, ID {identity}", identity, values)

    def _lists(self, known: set[str]) -> dict[str, tuple[str, ...]]:
        """Return {name: IDs} of split.json, checked against those of the people."""
        found: dict[str, tuple[str, ...]] = {}
        values = self._json(SPLIT, dict)
        names = [f"forget{share}" for share in SHARES]
        for name in values if self.faults else dict.fromkeys([*names, *values]):
            ids = values.get(name)
            if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
                expected = "a list of unique_ids"
                self.faults.append(f"{SPLIT}: {name} is {short(ids)}, expected {expected}.")
                continue
            if lacking := sorted(set(ids) - known):
                shown = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
                self.faults.append(
                    f"{SPLIT}: {name} names {shown}, who {FULL} lacks. Take both of one release."
                )
            found[name] = tuple(ids)
        return found

    def _person(self, row: _Row, where: Set, lists: tuple[str, ...]) -> Person:
        """Return a person; what they are asked by the published protocol is put beside."""
        image, name, asked = None, "", []
        with self.faults_at(row.place):
            image = self._image(row.values.get("image_path"))
        with self.faults_at(row.place):
            name = text_of(row.values.get("name"), "name")
            if not name:
                raise ManuError("has no name. Mend the entry.")
        items = row.values.get("qa_list")
        if not isinstance(items, list) or not items:
            self.faults.append(f"{row.place}: qa_list is {short(items)}, expected a list.")
            items = []
        for number, item in enumerate(items):
            with self.faults_at(f"{row.place}: qa_list[{number}]"):
                found = _asked(item, f"{row.id}/{number:02d}")
                if found is None:
                    self.skipped[EMPTY] += 1
                else:
                    asked.append(found)
        biography = row.values.get("raw_data")
        biography = biography if isinstance(biography, dict) else {}
        pairs = [(one.question, one.answer) for one in asked]
        facts = facts_of(row.id, pairs, biography, name=name, image=image)
        images = () if image is None else (image,)
        self.probes += probes_of(asked, where, person=row.id, image=image, lists=lists)
        return Person(row.id, name, images, biography, facts, tuple(_questions(facts)))

    def _image(self, name: Any) -> Any:
        """Return the image of a path, which may begin above the folder."""
        if not isinstance(name, str) or not name.strip():
            raise ManuError(f"image_path is {short(name)}, expected a path. Mend the entry.")
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".", "..")]
        paths = [self.path.joinpath(*parts[start:]) for start in range(len(parts))]
        path = next((one for one in paths if one.is_file()), None)
        if path is None:
            raise ManuError(f"there is no image {name} in {self.path}. Download the images, too.")
        try:
            return decode(path)
        except ManuError as error:
            raise ManuError(f"the image {name}: {error}") from None

    def _json(self, name: str, kind: type) -> Any:
        """Return what a file of the folder holds; empty, and a fault, where it is not of `kind`."""
        path, expected = self.path / name, "a list" if kind is list else "a mapping"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            self.faults.append(
                f"{path}: {error.strerror}. data.path is the folder of FIUBench as downloaded."
            )
            return kind()
        except (ValueError, RecursionError) as error:
            self.faults.append(f"{name}: is not JSON ({error}). Download it again.")
            return kind()
        if not isinstance(value, kind) or not value:
            self.faults.append(f"{name}: holds {short(value)}, expected {expected}.")
            return kind()
        return value


def _asked(item: Any, key: str) -> Asked | None:
    """Return an entry of qa_list; None where its question or answer is empty."""
    lacking = [name for name in QA_KEYS if not isinstance(item, dict) or name not in item]
    if lacking:
        raise ManuError(f"{short(item)} has no {' and no '.join(lacking)}. Mend the entry.")
    question, answer = (text_of(item[name], name) for name in ("question", "answer"))
    lists = {name: truths_of(item[name], name) for name in QA_KEYS[2:]}
    if not question or not answer:
        return None
    return Asked(
        key,
        question,
        answer,
        paraphrased_questions=lists["paraphrased_question"],
        paraphrased=lists["paraphrased_answer"],
        perturbed=lists["perturbed_answer"],
        keywords=lists["keywords"],
    )


def _questions(facts: Sequence[Fact]) -> Iterator[Question]:
    """Yield the free questions of the project's own tasks, in the forms that each fact has."""
    for fact in facts:
        for modality in MODALITIES:
            if has_form(fact, modality):
                question, answer = question_and_answer(fact, modality)
                yield Question("generation", modality, question, answer, fact.attribute)
