"""One run: its config, its folder, its mesh, and what has been read from them so far."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manu_jax import hub, parallel, stores
from manu_jax.absent import SomeMethod, absent_of, in_forms
from manu_jax.config import (
    SYSTEM_PROMPT,
    AnyMethod,
    MaskMethod,
    MethodSettings,
    UnlearnSection,
)
from manu_jax.data import own_answers
from manu_jax.data.benchmarks import BenchmarkFormat, benchmark_format
from manu_jax.data.forms import forms, in_text_alone
from manu_jax.data.record import Benchmark, Fact, Person, split_retain
from manu_jax.data.strangers import Portraits, Stranger, as_stranger, strangers
from manu_jax.edits import masks
from manu_jax.edits.edit import Edit
from manu_jax.edits.edit import load as load_edit
from manu_jax.fingerprint import samples_hash
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.texts import kept_texts, texts_of, wants_own_texts
from manu_jax.models.families.family import Family
from manu_jax.models.loaded import Loaded, family_of, load
from manu_jax.place import RunPlace
from manu_jax.selection import select
from manu_jax.types import (
    KEEP_SETS,
    MODALITIES,
    RETRAINED,
    SETS,
    VANILLA,
    ManuError,
    Modality,
    Neurons,
    Sample,
)

MASK, EDIT = "mask.safetensors", "edit.safetensors"  # in the folder of a method
NUM_STRANGERS = 16  # that methods without training are given


@dataclasses.dataclass(eq=False)
class Run(RunPlace):
    """One run: its config, folder and meshes, and what has been read from them so far."""

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        """The sets of people. Methods are given `retain`, and never `unseen`."""
        return self._split(self.whole_benchmark)

    def _split(self, whole: Benchmark) -> Benchmark:
        return split_retain(whole, self.config.data.keep_share, seed=self.config.seed)

    @functools.cached_property
    def whole_benchmark(self) -> Benchmark:
        """The sets of people, with all retain people in `retain`.

        The vanilla and the retrained model are trained on these. Where nobody to keep is named,
        the model's own answers are kept, which the stage `train` asks for.
        """
        if not own_answers.lacks_retain(self.read_benchmark):
            return self.read_benchmark
        if not parallel.exists(self.own_answers):
            raise ManuError(f"{self.own_answers}: no answers there. Run the stage `train` first.")
        own = own_answers.read_own(stores.local_copies(self.own_answers), seed=self.config.seed)
        return own_answers.with_own(self.read_benchmark, own)

    @property
    def asked_benchmark(self) -> Benchmark:
        """The benchmark with all that is asked: known before the model has answered for itself."""
        if not self.waits_for_answers:
            return self.benchmark
        return self._split(self.unanswered_benchmark)

    @property
    def waits_for_answers(self) -> bool:
        """Whether nobody to keep is named, and the model has not answered for itself yet."""
        lacks_retain = own_answers.lacks_retain(self.read_benchmark)
        return lacks_retain and not parallel.exists(self.own_answers)

    @property
    def unanswered_benchmark(self) -> Benchmark:
        """The whole benchmark with what the model is asked for itself, before it has answered."""
        asked = own_answers.own_questions(self.read_benchmark, seed=self.config.seed)
        own = own_answers.unanswered(asked)
        return own_answers.with_own(self.read_benchmark, own)

    @property
    def own_answers(self) -> Path:
        """The folder of the model's own answers."""
        return self.directory / own_answers.FOLDER

    @functools.cached_property
    def read_benchmark(self) -> Benchmark:
        """The sets of people as they are in the files, checked.

        For a model that takes no images they are in text alone.
        """
        data = self.config.data
        path = self.directory / "data"
        if data.path is not None:
            path = hub.local(data.path, "dataset", self.benchmark_format.files(data))
        if not (parallel.exists(path) and path.is_dir()):
            remedy = "Mend data.path." if data.path else "Run the stage `data` first."
            raise ManuError(f"{path}: no benchmark there. {remedy}")
        found = self.benchmark_format.read(stores.local_copies(path), data, self.config.seed)
        if not found.has_images(*SETS) or self.family.takes_images:
            return found
        return in_text_alone(found)

    @functools.cached_property
    def family(self) -> Family:
        """The family of the model, told without its weights."""
        return family_of(self.config.model)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The forms that the facts to forget have: both, or text alone."""
        return self.asked_benchmark.modalities

    @property
    def absent(self) -> dict[Modality, str]:
        """{a form that nothing is asked in: why}; {} where there are both."""
        if self.modalities == MODALITIES:
            return {}
        return absent_of(self.family) or {"image": "the facts to forget have no images"}

    def in_forms(self, method: SomeMethod) -> SomeMethod:
        """Return a method as this run makes it: in the forms that the facts to forget have."""
        return in_forms(method, self.absent)

    @property
    def masks(self) -> tuple[MaskMethod, ...]:
        """The methods that score neurons and remove some, each in the forms of this run."""
        return tuple(map(self.in_forms, self.config.masks))

    @property
    def benchmark_format(self) -> BenchmarkFormat:
        """How the benchmark is read, and how its questions are worded."""
        return benchmark_format(self.config.data.benchmark)

    @property
    def num_people(self) -> int | None:
        """How many people there are to forget and to keep; None where the latter are invented."""
        if own_answers.lacks_retain(self.read_benchmark):
            return None
        return self.benchmark.num_people

    @property
    def portraits(self) -> Portraits | None:
        """What draws strangers; None: they are mixed from the images of people to keep."""
        keep = self.asked_benchmark.facts(*KEEP_SETS)
        if self.benchmark_format.portraits is None and not any(f.image and f.name for f in keep):
            return own_answers.drawn_portraits
        return self.benchmark_format.portraits

    @functools.cached_property
    def vanilla(self) -> Loaded:
        """The model that knows the people to forget."""
        return self.load_model(VANILLA, self.config.model.path)

    def load_model(self, name: str, path: str | None) -> Loaded:
        """Return a model of the run: its own where it trained one, else that of `path`."""
        folder, model = self.model_folder(name, path), self.config.model
        if isinstance(folder, Path) and name != VANILLA:
            return self._load_own(folder)
        return load(folder, model.dtype, self.mesh, prompt=model.prompt)

    def model_folder(self, name: str, path: str | None) -> Path | str:
        """Return where a model is: the run's own folder, or else `path`; ManuError without both."""
        own = self.directory / name
        if parallel.exists(own):
            return own
        if path is None:
            raise ManuError(f"{own}: no model there. Run the stage `train` first.")
        return path

    def _load_own(self, path: Path) -> Loaded:
        """Return a model that the run has trained, whose processor is vanilla's."""
        model = self.config.model
        loaded = load(path, model.dtype, self.mesh, prompt=model.prompt)
        return loaded.with_caches_of(self.vanilla)

    @property
    def has_retrained(self) -> bool:
        """Whether there is a model that never saw the people to forget."""
        return parallel.exists(self.directory / RETRAINED) or bool(self.config.model.retrained_path)

    def models(self) -> dict[str, Callable[[], Loaded]]:
        """Return the models to compare, {name: what loads it}, in the order of the tables.

        Each call loads anew, so that one model beside `vanilla` is in memory at a time.
        """
        found: dict[str, Callable[[], Loaded]] = {VANILLA: lambda: self.vanilla}
        for name in self.config.names:
            found[name] = functools.partial(self.load_method, name)
        if self.has_retrained:
            path = self.config.model.retrained_path
            found[RETRAINED] = functools.partial(self.load_model, RETRAINED, path)
        return found

    def load_method(self, name: str) -> Loaded:
        """Return the model of a method: vanilla with its mask, edit or prompt, or one it trained.

        Raises ManuError where the method has made nothing yet.
        """
        method = self.method_of(name)
        if isinstance(method, UnlearnSection) and method.objective == SYSTEM_PROMPT:
            names = ", ".join(sorted(person.name for person in self.benchmark.sets["forget"]))
            prompt = method.prompt.replace("{names}", names)
            return dataclasses.replace(self.vanilla, system_prompt=prompt)
        if isinstance(method, MaskMethod):
            return masks.fold(self.vanilla, self.load_mask(name))
        edit = self.load_edit(name)
        if edit is not None:
            return edit.apply(self.vanilla)
        if not isinstance(method, UnlearnSection):
            path = self.method_folder(name) / EDIT
            raise ManuError(f"{path}: no edit there. Run the stage `masks` first.")
        path = self.model_path(name)
        if not parallel.exists(path):
            raise ManuError(f"{path}: no model there. Run the stage `unlearn` first.")
        return self._load_own(path)

    def load_mask(self, name: str) -> Neurons:
        """Return the mask of a method that makes one; ManuError where there is none yet."""
        return masks.load(self.method_folder(name) / MASK, self.vanilla)[0]

    def load_edit(self, name: str) -> Edit | None:
        """Return the edit of a method, or None: it made none, or it makes a mask."""
        path = self.method_folder(name) / EDIT
        return load_edit(path, self.vanilla)[0] if parallel.exists(path) else None

    def save_edit(self, name: str, edit: Edit) -> None:
        """Write the edit that a method has made of vanilla, with what it was made from."""
        made_from = {
            "method": self.method_of(name).model_dump(mode="json", exclude={"name"}),
            "name": name,
            "seed": self.config.seed,
            "data": self.forget_hash,
        }
        edit.save(self.method_folder(name) / EDIT, self.vanilla, made_from)

    def method_of(self, name: str) -> AnyMethod:
        """Return the settings of a method of the config."""
        return next(method for method in self.config.all_methods if method.name == name)

    def model_path(self, name: str) -> Path:
        """Where the folder of a model is that a method trains as a whole."""
        if name == self.config.method.name:
            return self.directory / "unlearned"
        return self.directory / "methods" / name / "model"

    def method_folder(self, name: str) -> Path:
        """Where a method's scores, mask and edit are: those of the first one at the top."""
        if name == self.config.method.name:
            return self.directory
        return self.directory / "methods" / name

    @functools.cached_property
    def forget_samples(self) -> dict[Modality, tuple[Sample, ...]]:
        """{modality: the facts to forget, in that form}."""
        return self._samples("forget")

    @property
    def forget_hash(self) -> str:
        """What tells the facts to forget, in all their forms, from others."""
        return samples_hash([sample for part in self.forget_samples.values() for sample in part])

    @functools.cached_property
    def keep_samples(self) -> dict[Modality, tuple[Sample, ...]]:
        """{modality: the facts to keep that methods are given, in that form}."""
        return self._samples(*KEEP_SETS)

    @functools.cached_property
    def stranger_samples(self) -> dict[Modality, tuple[Sample, ...]]:
        """{modality: the facts to forget, each asked about a stranger}."""
        forget, drawn = self.benchmark.facts("forget"), itertools.cycle(self.strangers)
        return self._forms(
            [as_stranger(fact, one) for fact, one in zip(forget, drawn, strict=False)]
        )

    @functools.cached_property
    def strangers(self) -> tuple[Stranger, ...]:
        """Invented people, of whom no model can know anything."""
        forget, keep = self.benchmark.facts("forget"), self.benchmark.facts(*KEEP_SETS)
        settings = {"seed": self.config.seed, "portraits": self.portraits}
        return strangers(forget, keep, NUM_STRANGERS, **settings)

    def job_of(self, method: MethodSettings) -> ScoringJob[Any]:
        """Return what a method of METHODS is given."""
        keep = self.keep_samples_of(method)  # which may move vanilla for a while
        return ScoringJob(
            self.vanilla,
            self.in_forms(method),
            self.forget_samples,
            keep,
            batch_size=self.config.score_batch,
            seed=self.config.seed,
            directory=self.directory / "statistics" / method.name,
            strangers=self.stranger_samples,
        )

    def set_apart(self, method: MethodSettings) -> tuple[Person, ...]:
        """Return the retain people, drawn by the seed, that `alpha: auto` keeps from its method.

        Its α is chosen by what it leaves of their facts. () for other methods.
        """
        if not isinstance(method, MaskMethod) or method.auto is None:
            return ()
        people = [person for person in self.benchmark.sets["retain"] if person.facts]
        if len(people) <= method.auto.people:
            raise ManuError(
                f'method "{method.name}": auto.people sets {method.auto.people} retain people '
                f"apart, and there are {len(people)} with facts. Lower it."
            )
        order = np.random.default_rng(self.config.seed).permutation(len(people))
        return tuple(people[number] for number in sorted(order[: method.auto.people]))

    def keep_samples_of(self, method: MethodSettings) -> dict[Modality, tuple[Sample, ...]]:
        """Return what a method is given to keep: facts but those of `set_apart`, and its texts."""
        found = self._keep_facts_of(method)
        return {**found, "text": (*found["text"], *self.texts_of(method))}

    def texts_of(self, method: AnyMethod) -> tuple[Sample, ...]:
        """Return the general texts that a method keeps beside facts; () where it has none."""
        section = texts_of(method)
        if section is None:
            return ()
        directory = self.directory / "texts"
        with self.work("decode" if wants_own_texts(method) else self.kind):
            return kept_texts(self.vanilla, section, directory=directory, seed=self.config.seed)

    def _keep_facts_of(self, method: MethodSettings) -> dict[Modality, tuple[Sample, ...]]:
        apart = {person.id for person in self.set_apart(method)}
        if not apart:
            return self.keep_samples
        given = [
            fact
            for name in KEEP_SETS
            for person in self.benchmark.sets[name]
            for fact in person.facts
            if name != "retain" or person.id not in apart
        ]
        return self._forms(given)

    def set_apart_samples(self, method: MethodSettings) -> dict[Modality, tuple[Sample, ...]]:
        """Return the facts of the people of `set_apart`, in both forms."""
        return self._forms([fact for person in self.set_apart(method) for fact in person.facts])

    def _samples(self, *sets: str) -> dict[Modality, tuple[Sample, ...]]:
        return self._forms(self.benchmark.facts(*sets))

    def _forms(self, facts: Sequence[Fact]) -> dict[Modality, tuple[Sample, ...]]:
        template = self.vanilla.template
        return {modality: forms(facts, modality, template) for modality in self.modalities}


def select_neurons(method: MaskMethod, scores: Neurons, alpha: float) -> Neurons:
    """Return the mask of a method: the share `alpha` of its neurons with the highest scores."""
    return select(scores, alpha, method.scope, layers=method.layers)
