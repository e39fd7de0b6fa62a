"""CLEAR (Dontsov et al. 2024, arXiv 2410.18057): the invented authors of TOFU, with their faces.

A folder of folders of parquet files, as the hub has them (therem/CLEAR). NN is 01, 05 or 10, MM the
other share, 99, 95 or 90:

    forgetNN, retainMM                     image, caption, name
    forgetNN+tofu, retainMM+tofu           image, caption, question, answer: these images again, and
                                           rows of TOFU, which have no image and no caption
    forgetNN_perturbed, retain_perturbed   image, caption, name, paraphrased_caption,
                                           perturbed_captions, perturbed_names
    real_faces                             image, answer, options
    real_world                             image (may be null), question, answer, options

A person is an author. Facts with an image are the captions and who it is; facts in text alone are
TOFU's. TOFU's rows do not tell whose they are: QUESTIONS of each author stand one after the other,
and are those of the author whose name most of them hold.

How rows become people is in clear_people.py, what CLEAR's authors ask in clear_protocol.py.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.config import DataSection
from manu_jax.data.cells import short, text_of
from manu_jax.data.clear_people import (
    Author,
    author_of,
    celebrities,
    person_of,
    slug,
    topic_of,
    words_of,
)
from manu_jax.data.clear_protocol import Captioned, Photographed, Rows, listed, probes_of
from manu_jax.data.prompts import refuse_shots
from manu_jax.data.record import Benchmark, Question
from manu_jax.data.tables import Row, TableReader, columns_fault
from manu_jax.folder import expand_path
from manu_jax.types import ManuError, PromptTemplate

SHARES = (1, 5, 10)
QUESTIONS = 20  # of each author in TOFU
EMPTY_WRONG = "wrong answers with an empty text"
CAPTIONS = ("image", "caption", "name")
PERTURBED = (*CAPTIONS, "paraphrased_caption", "perturbed_captions", "perturbed_names")
TOFU = ("image", "question", "answer")
FACES = ("image", "answer", "options")
WORLD = ("image", "question", "answer", "options")


def read(folder: Path, section: DataSection, seed: int) -> Benchmark:
    """Return the authors of CLEAR's folder, `section.forget` percent of them to forget.

    Real faces are the set `celebrity`, questions on the real world `general`; neither has facts.
    seed: draws which caption question is asked of an image, and where options stand. Raises
    ManuError, with every fault found.
    """
    return _Reader(expand_path(folder), section, seed).read()


def files(section: DataSection) -> tuple[str, ...]:
    """Return patterns of the files that are read."""
    return tuple(f"{name}/*" for name in _folders(section.forget).values())


def question_prompt(
    question: Question, template: PromptTemplate, shots: Sequence[Question] = ()
) -> str:
    """Return a question as it is written; options are listed below it, and chosen by their letter.

    ManuError for shots: there are none.
    """
    refuse_shots(shots, "the benchmark clear")
    asked = listed(question.question, question.options or {})
    return template.prompt(asked, question.modality)


class _Reader(TableReader):
    """One reading of the benchmark."""

    def __init__(self, path: Path, section: DataSection, seed: int):
        super().__init__()
        self.path, self.seed, self.subset = path, seed, section.subset
        self.folders = _folders(section.forget)
        self.skipped: Counter[str] = Counter()

    def read(self) -> Benchmark:
        missing = [name for name in self.folders.values() if not (self.path / name).is_dir()]
        if missing:
            raise ManuError(
                f"benchmark {self.path}: no folder {', '.join(missing)}. data.path is the folder "
                "that holds CLEAR's configurations (forget10, forget10+tofu, real_faces, …)."
            )
        rows = Rows(
            forget=self._captions("forget", CAPTIONS),
            perturbed={
                "forget": self._captions("forget_perturbed", PERTURBED),
                "retain": self._captions("retain_perturbed", PERTURBED),
            },
            faces=self._photographs("real_faces", FACES),
            world=self._photographs("real_world", WORLD),
        )
        retain = self._captions("retain", CAPTIONS)
        authors = {
            "forget": self._authors("forget", rows.forget, rows.perturbed["forget"]),
            "retain": self._authors("retain", retain, rows.perturbed["retain"]),
        }
        self._check(authors, rows)
        self.raise_faults(f"benchmark {self.path}")
        sets = {
            name: tuple(person_of(one, of[one], self.seed) for one in sorted(of))
            for name, of in authors.items()
        }
        faceless = sum(not person.images for people in sets.values() for person in people)
        note = f"{faceless} of TOFU's authors have no image in CLEAR: they are asked in text alone."
        return Benchmark(
            {
                **sets,
                "celebrity": celebrities(rows.faces, self.seed),
                "general": tuple(topic_of(row, self.seed) for row in rows.world),
            },
            dict(+self.skipped),
            notes=(note,) if faceless else (),
            probes=probes_of(rows, self.subset, seed=self.seed),
        )

    def _captions(self, name: str, columns: Sequence[str]) -> tuple[Captioned, ...]:
        """Return the photographs of authors of a folder, in order."""
        found = []
        for row in self._rows(name, columns):
            author = self._text(row, "name")
            is_perturbed = columns == PERTURBED
            found.append(
                Captioned(
                    row.place,
                    row.id,
                    slug(author),
                    author,
                    self.image(row, row.cells["image"]),
                    self._text(row, "caption"),
                    self._text(row, "paraphrased_caption") if is_perturbed else "",
                    self._texts(row, "perturbed_captions") if is_perturbed else (),
                    self._texts(row, "perturbed_names") if is_perturbed else (),
                )
            )
        return tuple(found)

    def _photographs(self, name: str, columns: Sequence[str]) -> tuple[Photographed, ...]:
        """Return the rows on real people or the real world, in order."""
        found = []
        for row in self._rows(name, columns):
            answer, cell = self._text(row, "answer"), row.cells["image"]
            is_world = columns == WORLD
            found.append(
                Photographed(
                    row.id,
                    f"world-{row.id}" if is_world else f"face-{slug(answer)}",
                    None if is_world and _is_empty(cell) else self.image(row, cell),
                    self._text(row, "question") if is_world else "",
                    answer,
                    self._texts(row, "options"),
                )
            )
        return tuple(found)

    def _authors(
        self, name: str, captions: Sequence[Captioned], perturbed: Sequence[Captioned]
    ) -> dict[str, Author]:
        """Return {ID: author} of a set, with TOFU's questions."""
        authors: dict[str, Author] = {}
        for one in captions:
            author = authors.setdefault(one.person, Author(one.name, one.place))
            author.photographs.append(one)
        for one in perturbed:
            if one.person in authors and not authors[one.person].wrong_names:
                authors[one.person].wrong_names = one.wrong_names
        rows = self._rows(f"{name}_tofu", TOFU)
        asked = [row for row in rows if _is_empty(row.cells["image"])]
        pairs = [(self._text(row, "question"), self._text(row, "answer")) for row in asked]
        if not asked or len(asked) % QUESTIONS:
            self.faults.append(
                f"{self.folders[f'{name}_tofu']}: {len(asked)} rows without an image, expected "
                f"TOFU's {QUESTIONS} questions of every author. Download the folder again."
            )
            return authors
        words = {person: words_of(author.name) for person, author in authors.items()}
        for start in range(0, len(pairs), QUESTIONS):
            block = pairs[start : start + QUESTIONS]
            person = author_of(block, words)
            if person is None:  # an author of whom there is no image
                person = f"tofu-{name}-{start // QUESTIONS + 1}"
                authors[person] = Author("", asked[start].place)
            authors[person].pairs += block
        return authors

    def _rows(self, name: str, columns: Sequence[str]) -> Iterator[Row]:
        return self.numbered_rows(
            self.path / self.folders[name],
            lambda found: columns_fault(found, columns, "CLEAR's folder"),
        )

    def _text(self, row: Row, column: str) -> str:
        """Return the text of a cell; a fault where there is none."""
        with self.faults_at(row.place):
            text = text_of(row.cells[column], column)
            if not text:
                raise ManuError(f"{column} is empty. Mend the row.")
            return text
        return ""

    def _texts(self, row: Row, column: str) -> tuple[str, ...]:
        """Return the texts of a list without the empty ones; a fault where there are none."""
        value = row.cells[column]
        with self.faults_at(row.place):
            if not isinstance(value, list):
                raise ManuError(f"{column} is {short(value)}, expected a list. Mend the row.")
            texts = [text_of(one, f"{column}[{number}]") for number, one in enumerate(value)]
            found = tuple(filter(None, texts))
            self.skipped[EMPTY_WRONG] += len(texts) - len(found)
            if not found:
                raise ManuError(f"{column} has no texts. Mend the row.")
            return found
        return ()

    def _check(self, authors: Mapping[str, Mapping[str, Author]], rows: Rows) -> None:
        if self.faults:  # what could not be read would be named a second time
            return
        counts = {
            self.folders["forget"]: rows.forget,
            self.folders["retain"]: [a for a in authors["retain"].values() if a.photographs],
            self.folders["forget_perturbed"]: rows.perturbed["forget"],
            self.folders["retain_perturbed"]: rows.perturbed["retain"],
            "real_faces": rows.faces,
            "real_world": rows.world,
        }
        for folder, found in counts.items():
            if not found:
                self.faults.append(f"{folder}: has no rows. Download the folder again.")
        for person in sorted(set(authors["forget"]) & set(authors["retain"])):
            first, second = (authors[name][person].place for name in ("forget", "retain"))
            self.faults.append(
                f"{first}: {authors['forget'][person].name} is in {second}, too. An author is to "
                "be forgotten or kept: take the rows out of one."
            )
        for name, other in (("forget", "retain"), ("retain", "forget")):
            for one in rows.perturbed[name]:
                if one.person in authors[other]:
                    self.faults.append(
                        f"{one.place}: {one.name} is an author of {self.folders[other]}. Give both "
                        "folders of the same release."
                    )


def _is_empty(cell: Any) -> bool:
    """Whether there is no image in a cell: null, or a mapping whose values are."""
    return cell is None or (isinstance(cell, dict) and not any(map(bool, cell.values())))


def _folders(share: int) -> dict[str, str]:
    forget, retain = f"forget{share:02d}", f"retain{100 - share}"
    return {
        "forget": forget,
        "retain": retain,
        "forget_tofu": f"{forget}+tofu",
        "retain_tofu": f"{retain}+tofu",
        "forget_perturbed": f"{forget}_perturbed",
        **{name: name for name in ("retain_perturbed", "real_faces", "real_world")},
    }
