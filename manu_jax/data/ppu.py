"""PPU-Bench (arXiv 2605.08800; guangjh/ppu-bench 05b0265; Hub closerG/ppu-bench): public figures.

Real people, whom released models know: nothing is fine-tuned before. What is to be forgotten is a
setting, `data.subset`:

    complete    some people as a whole: `data.forget` percent of them (5, 10, 15 or 30)
    selective   the sensitive facts of all people
    persona     some facts of all people, as a user might choose them

The 22 configs (ppu_rows.py says how they are stored, and what is read of a row):

    unlearning_target             the facts, with their true answers
    train_pair_M, train_pair_M_qa with M qwen3 or gemma3: the facts in both forms, with what that
                                  model answers; read in place of unlearning_target in the subsets
                                  SETTING_M (persona_qwen3)
    ppu_eval_TASK                 the questions of the evaluation, TASK classification, cloze or
                                  generation
    cross_image_SETTING           what is to be forgotten with three further images: the set `test`
    random_prefix_SETTING, jailbreak_style_prompt_SETTING, paraphrase_SETTING
                                  the questions to forget in an attacker's words: probes alone

SETTING is there complete_r5, _r15, _r30, or complete30, selective, persona. What is to be forgotten
is not in the data set but in `data/split/` of the authors' repository: `complete_split.json`
{"forget5": [subject_id]}, `selective_split.json` [{"id"}] and `persona_split.json` {"delete_ids":
[{"id"}], "keep_ids": [{"id"}]}. `data.train_path` names that folder; else the files lie in the
benchmark's folder, in `split/` or in `data/split/`. Without selective_split.json the facts are
those that are said to be from "sensitive_info".

A person of whom some facts are kept is in `retain` as well.
"""

import collections
import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manu_jax.config import DataSection
from manu_jax.data.forms import is_name_question, with_name
from manu_jax.data.ppu_rows import Item, RowReader
from manu_jax.data.ppu_splits import SETTINGS, Split, read_split
from manu_jax.data.probes import Probe
from manu_jax.data.record import TASKS, Benchmark, Fact, Person, Question, Task
from manu_jax.types import Modality, Set

MODELS = ("qwen3", "gemma3")  # whose own answers train_pair_* holds
SUBSETS = (*SETTINGS, *(f"{setting}_{model}" for setting in SETTINGS for model in MODELS))
SHARES = (5, 10, 15, 30)
TARGET = "unlearning_target"
ATTACKS = ("random_prefix", "jailbreak_style_prompt", "paraphrase")
NEW_TOKENS = 50
LEFT_OUT = "items that the setting neither forgets nor keeps"
KEPT_FURTHER = "questions with further images about what is not to be forgotten"


@dataclasses.dataclass(frozen=True)
class Configs:
    """The names of the configs of a subset: facts in both forms or each, questions, attacks."""

    setting: str
    facts: tuple[str, ...]
    further: str
    attacks: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        asked = tuple(f"ppu_eval_{task}" for task in TASKS)
        return (*self.facts, *asked, self.further, *self.attacks)


def configs_of(section: DataSection) -> Configs:
    """Return the configs that a data section asks for."""
    setting, _, model = (section.subset or SUBSETS[0]).partition("_")
    facts = (f"train_pair_{model}", f"train_pair_{model}_qa") if model else (TARGET,)
    is_complete = setting == "complete"
    further = f"cross_image_{setting}" + (f"_r{section.forget}" if is_complete else "")
    attacked = f"{setting}{section.forget}" if is_complete else setting
    return Configs(setting, facts, further, tuple(f"{attack}_{attacked}" for attack in ATTACKS))


def forgets_people(section: DataSection) -> bool:
    """Return whether a setting forgets people as a whole, `data.forget` percent of them."""
    return configs_of(section).setting == "complete"


def files(section: DataSection) -> tuple[str, ...]:
    """Return patterns of the files that are read of the benchmark on the hub."""
    return (*(f"*{name}*" for name in configs_of(section).names), "*_split.json")


def read(folder: Path, section: DataSection, seed: int) -> Benchmark:
    """Return the sets and the probes of a subset of PPU-Bench; all faults are in one ManuError."""
    configs, reader = configs_of(section), RowReader(folder)
    facts = _facts(reader, configs)
    asked = [item for task in TASKS for item in reader.items(f"ppu_eval_{task}", "eval", task)]
    lacking = [name for name in (configs.further, *configs.attacks) if not reader.has(name)]
    further = [] if configs.further in lacking else reader.items(configs.further, "cross")
    attacks = {
        attack: reader.items(name, "eval", "generation")
        for attack, name in zip(ATTACKS, configs.attacks, strict=True)
        if name not in lacking
    }
    with reader.faults_at("split"):
        split = read_split(configs.setting, folder, section, items=[*facts, *asked])
        _check(reader, facts, split)
    reader.raise_faults(f"benchmark {folder}")
    people = _People(split, facts, asked, reader.skipped)
    num_further = len(further)
    further = [item for item in further if split.set_of(item) == "forget"]
    reader.skipped[KEPT_FURTHER] += num_further - len(further)
    sets: dict[str, tuple[Person, ...]] = {name: people.of(name) for name in ("forget", "retain")}
    has_all = section.test_images == "all"
    sets["test"] = tuple(_further(sets["forget"], further, seed=None if has_all else seed))
    probes = [
        *people.probes(),
        *_further_probes(further),
        *_attacks(attacks),
    ]
    notes = [f"There is no config {', '.join(lacking)}: not asked."] if lacking else []
    return Benchmark(sets, dict(+reader.skipped), tuple(notes), tuple(probes))


def further_task(task: Task, number: int) -> str:
    """Return the name of a task that is asked with a further image."""
    return f"{task}_image{number}"


class _People:
    """The people of a setting: whose facts are to be forgotten, and whose are to be kept."""

    def __init__(
        self,
        split: Split,
        facts: Sequence[Item],
        asked: Sequence[Item],
        skipped: collections.Counter[str],
    ) -> None:
        self.split, self.asked = split, asked
        self.names = {item.subject_id: item.subject for item in facts}
        self.by_person: dict[tuple[str, str], tuple[list[Item], list[Item]]] = {}
        for place, items in enumerate((facts, asked)):
            for item in items:
                where = split.set_of(item)
                if where is None:
                    skipped[LEFT_OUT] += 1
                else:
                    found = self.by_person.setdefault((where, item.subject_id), ([], []))
                    found[place].append(item)

    def of(self, name: str) -> tuple[Person, ...]:
        """Return the people of a set."""
        return tuple(
            self._person(subject, *items)
            for (where, subject), items in self.by_person.items()
            if where == name
        )

    def probes(self) -> Iterator[Probe]:
        """Yield what the published protocol asks of both sets."""
        for item in self.asked:
            where = self.split.set_of(item)
            if where is not None:
                yield _probe(item, where, task=str(item.task), image=item.image)

    def _person(self, subject: str, facts: Sequence[Item], asked: Sequence[Item]) -> Person:
        called = self.names.get(subject, "")
        shown = next((one.image for one in (*facts, *asked) if one.image is not None), None)
        return Person(
            subject,
            called,
            () if shown is None else (shown,),
            {"name": called},
            tuple(_fact(item, called) for item in facts),
            tuple(_question(item, None if item.image is shown else item.image) for item in asked),
        )


def _facts(reader: RowReader, configs: Configs) -> list[Item]:
    """Return the facts of a subset; those of a model are one in each form."""
    if len(configs.facts) == 1:
        return reader.items(configs.facts[0], "target")
    shown, in_words = (reader.items(name, "pair") for name in configs.facts)
    by_name = {item.subject: item.subject_id for item in shown}
    by_sample = {item.sample_id: item.subject_id for item in shown}
    found: list[Item] = []
    for modality, items in (("image", shown), ("text", in_words)):
        for item in items:
            known = by_sample.get(item.sample_id) or by_name.get(item.subject, "")
            subject_id = item.subject_id or known
            if not subject_id:
                reader.faults.append(
                    f"{item.place}: no subject_id, and {configs.facts[0]} has no {item.subject!r}. "
                    "Give both of one release."
                )
            elif modality == "image" and item.image is None:
                reader.faults.append(f"{item.place}: has no image. Download the file again.")
            image = item.image if modality == "image" else None
            found.append(
                dataclasses.replace(item, subject_id=subject_id, modality=modality, image=image)
            )
    return found


def _check(reader: RowReader, facts: Sequence[Item], split: Split) -> None:
    """Add a fault for a set without facts."""
    if reader.faults:  # what could not be read would be named a second time
        return
    sets = {split.set_of(item) for item in facts}
    reader.faults += [
        f"{split.place}: no fact of {split.facts_of(name)} is in the data. Give the split of the "
        "same release."
        for name in ("forget", "retain")
        if name not in sets
    ]


def _fact(item: Item, name: str) -> Fact:
    """Return a fact. Of one that a model answered in each form, the other form is left out."""
    attribute = item.sample_id
    in_words: str | None = None
    if item.modality == "image":
        in_words = ""
    elif item.modality == "text":
        attribute = f"{attribute}-text"
    elif name.casefold() in item.question.casefold():
        in_words = item.question
    elif is_name_question(item.question) or with_name(item.question, name) == item.question:
        in_words = ""  # it would be about nobody
    subject = item.subject_id
    return Fact(subject, name, item.question, item.answer, attribute, item.image, in_words)


def _question(item: Item, image: Any) -> Question:
    """Return a question of our own tasks, where "__" marks a blank."""
    words = item.question.replace("___", "__")
    return Question(
        item.task or "generation",
        item.modality or "text",
        words,
        item.answer,
        item.sample_id,
        item.options or None,
        item.label or None,
        image=image,
    )


def _probe(item: Item, where: Set, *, task: str, image: Any) -> Probe:
    details = (
        {"label": item.label, "source": item.source} if item.label else {"source": item.source}
    )
    modality: Modality = "text" if image is None else "image"
    return Probe(
        task,
        where,
        modality,
        item.subject_id,
        item.sample_id,
        item.question,
        item.answer,
        image=image,
        options=item.options,
        new_tokens=NEW_TOKENS,
        details=details,
    )


def _further(
    people: Iterable[Person], items: Sequence[Item], *, seed: int | None
) -> Iterator[Person]:
    """Yield the people to forget with further images: one drawn by the seed, or all (None)."""
    by_subject: dict[str, list[Item]] = collections.defaultdict(list)
    for item in items:
        by_subject[item.subject_id].append(item)
    for person in people:
        asked = by_subject.get(person.id, [])
        images = tuple(asked[0].further.values()) if asked else ()
        if images and seed is not None:
            random = np.random.default_rng([seed, zlib.crc32(person.id.encode())])
            images = (images[int(random.integers(len(images)))],)
        if images:
            facts = tuple(
                dataclasses.replace(fact, image=images[0], text_question="")
                for fact in person.facts
                if fact.image is not None
            )
            questions = tuple(_question(item, None) for item in asked)
            yield dataclasses.replace(person, images=images, facts=facts, questions=questions)


def _further_probes(items: Sequence[Item]) -> Iterator[Probe]:
    for item in items:
        for number, image in item.further.items():
            task = further_task(item.task or "generation", number)
            yield _probe(item, "test", task=task, image=image)


def _attacks(attacks: Mapping[str, Sequence[Item]]) -> Iterator[Probe]:
    for attack, items in attacks.items():
        for item in items:
            yield _probe(item, "forget", task=attack, image=item.image)
