"""One run: its config, its folder, its mesh, and what has been read from them so far."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from manu_jax import masks, parallel
from manu_jax.config import MethodSettings, RunConfig, UnlearnSection
from manu_jax.data.benchmarks import BenchmarkFormat, benchmark_format
from manu_jax.data.forms import forms
from manu_jax.data.record import Benchmark, Fact, Person
from manu_jax.folder import expand_path, write_atomic
from manu_jax.models.loaded import Loaded, load
from manu_jax.selection import select
from manu_jax.types import (
    KEEP_SETS,
    MODALITIES,
    RETRAINED,
    VANILLA,
    ManuError,
    Modality,
    Neurons,
    Sample,
)

SYSTEM_PROMPT = "system_prompt"  # the one objective of `unlearn` that trains nothing


@dataclasses.dataclass(eq=False)
class Run:
    """One run: its config and folder, and what has been read from them so far."""

    config: RunConfig
    directory: Path
    mesh: jax.sharding.Mesh | None

    @classmethod
    def begin(cls, config: RunConfig, directory: Path) -> "Run":
        """Return the run with its mesh; one device alone needs none."""
        sizes = config.mesh
        mesh = parallel.make_mesh(sizes.data, sizes.fsdp, sizes.tensor)
        if jax.process_count() > 1 and mesh.size != jax.device_count():
            raise ManuError(
                f"mesh: {mesh.size} devices, but the {jax.process_count()} processes have "
                f"{jax.device_count()}. Make the mesh span them all (one size may be −1)."
            )
        return cls(config, directory, None if mesh.size == 1 else mesh)

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        """The sets of people, read and checked."""
        data = self.config.data
        path = expand_path(data.path) if data.path else self.directory / "data"
        if not (parallel.exists(path) and path.is_dir()):
            remedy = "Mend data.path." if data.path else "Run the stage `data` first."
            raise ManuError(f"{path}: no benchmark there. {remedy}")
        return self.benchmark_format.read(path, data, self.config.seed)

    @property
    def benchmark_format(self) -> BenchmarkFormat:
        """How the benchmark is read, and how its questions are worded."""
        return benchmark_format(self.config.data.benchmark)

    @functools.cached_property
    def vanilla(self) -> Loaded:
        """The model that knows the people to forget."""
        return self.load_model(VANILLA, self.config.model.path)

    def load_model(self, name: str, path: str | None) -> Loaded:
        """Return a model of the run: its own where it trained one, else that of `path`."""
        own = self.directory / name
        is_own = parallel.exists(own)
        if not is_own and path is None:
            raise ManuError(f"{own}: no model there. Run the stage `train` first.")
        model = self.config.model
        folder = own if is_own else str(path)
        return load(folder, model.dtype, self.mesh, prompt=model.prompt)

    @property
    def has_retrained(self) -> bool:
        """Whether there is a model that never saw the people to forget."""
        return parallel.exists(self.directory / RETRAINED) or bool(self.config.model.retrained_path)

    def models(self) -> dict[str, Callable[[], Loaded]]:
        """Return the models to compare, {name: what loads it}, in the order of the tables.

        Each call loads anew, so that one model beside `vanilla` is in memory at a time.
        """
        found: dict[str, Callable[[], Loaded]] = {VANILLA: lambda: self.vanilla}
        for method in self.config.methods:
            found[method.name] = functools.partial(self.folded, method)
        for section in self.config.unlearn:
            found[section.name] = functools.partial(self.unlearned, section)
        if self.has_retrained:
            path = self.config.model.retrained_path
            found[RETRAINED] = functools.partial(self.load_model, RETRAINED, path)
        return found

    def folded(self, method: MethodSettings) -> Loaded:
        """Return the vanilla model without the neurons of a method's mask."""
        mask, _ = masks.load(self.method_folder(method) / "mask.safetensors", self.vanilla)
        return masks.fold(self.vanilla, mask)

    def unlearned(self, section: UnlearnSection) -> Loaded:
        """Return the model of a baseline: trained by the stage `unlearn`, or prompted."""
        if section.objective == SYSTEM_PROMPT:
            names = ", ".join(sorted(person.name for person in self.benchmark.sets["forget"]))
            prompt = section.prompt.replace("{names}", names)
            return dataclasses.replace(self.vanilla, system_prompt=prompt)
        path = self.unlearned_path(section)
        if not parallel.exists(path):
            raise ManuError(f"{path}: no model there. Run the stage `unlearn` first.")
        model = self.config.model
        return load(path, model.dtype, self.mesh, prompt=model.prompt)

    def unlearned_path(self, section: UnlearnSection) -> Path:
        """Where the model of a baseline that trains is."""
        return self.directory / "methods" / section.name / "model"

    def method_folder(self, method: MethodSettings) -> Path:
        """Where the scores and the mask of a method are."""
        if method.name == self.config.method.name:
            return self.directory
        return self.directory / "methods" / method.name

    @functools.cached_property
    def forget_samples(self) -> dict[Modality, tuple[Sample, ...]]:
        """{modality: the facts to forget, in that form}."""
        return self._samples("forget")

    @functools.cached_property
    def keep_samples(self) -> dict[Modality, tuple[Sample, ...]]:
        """{modality: the facts to keep, in that form}."""
        return self._samples("retain", "celebrity", "general")

    def set_apart(self, method: MethodSettings) -> tuple[Person, ...]:
        """Return the retain people, drawn by the seed, that `alpha: auto` keeps from its method.

        Its α is chosen by what it leaves of their facts. () for other methods.
        """
        if method.auto is None:
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
        """Return the facts to keep that a method is given: all but those of `set_apart`."""
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
        return {modality: forms(facts, modality, template) for modality in MODALITIES}

    def add_time(self, stage: str, seconds: float) -> None:
        """Add to the seconds that a stage has taken, over all calls on this folder."""

        def write() -> None:
            times = self.times()
            times[stage] = round(times.get(stage, 0.0) + seconds, 2)
            write_atomic(self.directory / "times.json", json.dumps(times, indent=1) + "\n")

        parallel.on_first_process(write)

    def times(self) -> dict[str, float]:
        """Return the seconds that each stage has taken so far."""
        path = self.directory / "times.json"
        if not path.exists():
            return {}
        try:
            return {str(name): float(spent) for name, spent in json.loads(path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ManuError(
                f"{path}: damaged ({error}). Delete the file and give the command again."
            ) from error


def select_neurons(method: MethodSettings, scores: Neurons, alpha: float) -> Neurons:
    """Return the mask of a method: the share `alpha` of its neurons with the highest scores."""
    return select(scores, alpha, method.scope, layers=method.layers)
