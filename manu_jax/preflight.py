"""What is checked before a run's first stage works, so that no fault is found after hours.

All that needs the config, the processor and shapes, and no weights: every problem is in one error.
"""

import contextlib
import functools
import shutil
from collections.abc import Collection, Iterator

import jax.numpy as jnp
import numpy as np

from manu_jax import hub, parallel, stores
from manu_jax.absent import absent_of, check_goal, in_forms
from manu_jax.amounts import amount
from manu_jax.config import SYSTEM_PROMPT, MaskMethod, OptimizerSection, UnlearnSection
from manu_jax.context import Run
from manu_jax.data.benchmarks import decouple_samples
from manu_jax.data.forms import has_form
from manu_jax.data.own_answers import lacks_retain
from manu_jax.evaluation.analyses.judged import check_judge
from manu_jax.evaluation.published import check_published
from manu_jax.evaluation.suite import check_prompts
from manu_jax.importance.texts import check_texts
from manu_jax.leaves import leaves, num_parameters
from manu_jax.models.created import create_without_weights
from manu_jax.models.loaded import Loaded, fetch, load_without_weights
from manu_jax.models.stored import DTYPES, read_config
from manu_jax.selection import eligible_layers
from manu_jax.training import lora
from manu_jax.training.edited import check_neurons
from manu_jax.training.fisher import check_masked
from manu_jax.training.teaching import check_parts
from manu_jax.training.tokenizer import train_tokenizer
from manu_jax.training.trainer import check_loss
from manu_jax.training.unlearner import (
    check_facts,
    layer_of,
    num_steps_of,
    place_of,
    recipe_of,
    reference_of,
)
from manu_jax.types import KEEP_SETS, RETRAINED, VANILLA, ManuError, Neurons

STATE_BYTES = 12  # a trained weight and its two moments
MOST_STATES = 3  # checkpoints at once: two that are kept and one that is written
WITHOUT_WEIGHTS = {"data", "report", "push"}  # stages that read none


def check(
    run: Run,
    stages: Collection[str],
    *,
    empty: Loaded | None = None,
    fetches_weights: bool = True,
    needs_room: bool = True,
) -> None:
    """Raise one ManuError with everything that would stop the run, as far as it can be told now.

    That is whatever needs no weights: models' folders, towers and layers of each method, LoRA
    targets, losses and what they compare with, prompts against the context, disk space. stages: the
    names of those that are to run. empty: the vanilla model as shapes; None: it is read here. One
    without a processor has no prompts that could be counted. fetches_weights: of the hub.
    needs_room: on this machine's disk.
    """
    faults: list[str] = []
    noted = functools.partial(_noted, faults)
    with noted():
        _check_earlier(run, stages)
    with noted():
        empty = without_weights(run) if empty is None else empty
        absent = absent_of(empty.family)  # what else is absent the data say
        with noted():
            check_goal(run.config, absent)
        for method in run.config.masks:
            with noted():
                _check_method(empty, in_forms(method, absent))
        for where, section in _trained(run):
            with noted():
                check_loss(empty, section, where)
            with noted(where):
                if section.lora is not None:
                    lora.check_targets(leaves(empty.model), section.lora)
        if run.config.audit.lora is not None:
            with noted("audit"):
                lora.check_targets(leaves(empty.model), run.config.audit.lora)
        for method in run.config.all_methods:
            with noted(f'method "{method.name}".keep_texts'):
                check_texts(method)
        if run.config.train.steps and run.config.train.is_careful:
            with noted():
                check_parts(empty, run.config.train)
        for section in run.config.trained:
            with noted():
                _check_trained(run, section, empty)
        if needs_room:
            with noted():
                _check_room(run, empty, stages)
        with noted():
            if empty.processor is not None:
                _check_data(run, empty, stages)
    given = run.config.model.retrained_path
    if given is not None:
        with noted():
            read_config(fetch(given, with_weights=False))
    if "evaluate" in stages:
        with noted():
            parallel.on_first_process(functools.partial(check_judge, run))  # alone asks it
    if run.config.push is not None and "push" in stages:
        with noted():
            parallel.on_first_process(functools.partial(hub.check_push, run.config.push))
    if faults:
        raise ManuError("\n".join(faults))
    if (
        fetches_weights and {*stages} - WITHOUT_WEIGHTS
    ):  # weights from the hub come now, and not after hours
        for path in (run.config.model.path, given):
            if path is not None:
                fetch(path)


def without_weights(run: Run) -> Loaded:
    """Return the vanilla model with shapes in place of weights.

    Of one that the run trains itself the tokenizer is a stand-in, with fewer tokens.
    """
    section = run.config.model
    if section.path is not None:
        return load_without_weights(section.path, prompt=section.prompt)
    tokenizer = None if section.decoder else train_tokenizer(["a"], section.text.vocabulary)
    return create_without_weights(section, tokenizer)


@contextlib.contextmanager
def _noted(faults: list[str], where: str = "") -> Iterator[None]:
    """Put the ManuError of the block into the list, under the section that it is about."""
    try:
        yield
    except ManuError as error:
        faults.append(f"{where}: {error}" if where else str(error))


def check_questions(run: Run, loaded: Loaded) -> None:
    """Raise ManuError where a prompt of the evaluation is longer than the model's context."""
    faults: list[str] = []
    with _noted(faults):
        check_prompts(
            loaded,
            run.asked_benchmark.sets,
            run.config.evaluate,
            question_prompt=run.benchmark_format.question_prompt,
            seed=run.config.seed,
        )
    with _noted(faults):
        check_published(run, loaded)
    if faults:
        raise ManuError("\n".join(faults))


def _check_method(empty: Loaded, method: MaskMethod) -> None:
    towers = method.scored_towers(empty.towers)
    missing = [tower for tower in towers if tower not in empty.towers]
    if missing:
        raise ManuError(
            f'method "{method.name}": the model has no tower {", ".join(missing)}; '
            f"it has {', '.join(sorted(empty.towers))}."
        )
    scores: Neurons = {tower: np.zeros((empty.towers[tower][0], 1)) for tower in towers}
    try:
        eligible_layers(scores, method.layers)
    except ManuError as error:
        raise ManuError(f'method "{method.name}": {error}') from None


def _trained(run: Run) -> Iterator[tuple[str, OptimizerSection]]:
    """Yield the sections that train, each with what errors call it."""
    if run.config.train.steps:
        yield "train", run.config.train
    for section in run.config.trained:
        if section.objective != SYSTEM_PROMPT:
            yield place_of(section), section


def _check_trained(run: Run, section: UnlearnSection, empty: Loaded) -> None:
    config, recipe = run.config, recipe_of(section)
    num_steps_of(recipe, section, num_forget=1, num_keep=1)
    in_forms(section, absent_of(empty.family))
    if recipe.masked:
        check_masked(section)
    if recipe.depth is not None:
        layer_of(section, recipe, empty.config.text.num_layers)
    check_neurons(empty, section)
    is_trained = config.train.steps and config.train.retrained
    if reference_of(section) == RETRAINED and not (is_trained or config.model.retrained_path):
        raise ManuError(
            f"{place_of(section)}: {section.objective} compares with a model that was tuned on the "
            "people to keep alone. Set train.retrained or model.retrained_path."
        )
    if section.decouple is not None:
        decouple_samples(config.data, section.decouple.path, empty.template)


def _check_earlier(run: Run, stages: Collection[str]) -> None:
    """Raise ManuError where what an earlier stage makes is not there, and that stage is not to run.

    Of the first such stage alone: the others follow from it.
    """
    if "data" not in stages and {*stages} - {"push"}:
        _ = run.read_benchmark
    if "train" not in stages and {*stages} - WITHOUT_WEIGHTS:
        run.model_folder(VANILLA, run.config.model.path)


def _check_data(run: Run, empty: Loaded, stages: Collection[str]) -> None:
    """Check what is asked of the data, where the run does not write them itself."""
    config = run.config
    if config.data.path is None:
        return
    sets = {"forget": ("forget",), "keep": KEEP_SETS}
    lacking = [
        f"{name}, {modality} form"
        for name, parts in sets.items()
        for modality in run.modalities
        if not any(has_form(fact, modality) for fact in run.asked_benchmark.facts(*parts))
    ]
    faults: list[str] = []
    if config.train.steps and lacks_retain(run.read_benchmark):
        faults.append(
            "train: the request names nobody to keep, and a model that is still to be trained has "
            "no answers of its own. Give retain.jsonl, or a trained model by model.path alone."
        )
    scoring = {"scores" if isinstance(one, MaskMethod) else "masks" for one in config.methods}
    if lacking and scoring & {*stages}:
        faults.append(
            f"no samples to score with: {'; '.join(lacking)}. Check data.path and data.train_path."
        )
    for method in config.methods:
        with _noted(faults):
            run.set_apart(method)
    for section in config.trained:
        with _noted(faults):
            asked = run.asked_benchmark
            forget, keep = asked.facts("forget"), asked.facts(*KEEP_SETS)
            check_facts(run.in_forms(section), forget=forget, keep=keep, seed=config.seed)
    if config.model.path is not None and "evaluate" in stages:
        with _noted(faults):
            check_questions(run, empty)
    if faults:
        raise ManuError("\n".join(faults))


def _check_room(run: Run, empty: Loaded, stages: Collection[str]) -> None:
    """Raise ManuError where the disk lacks room for the models that these stages are to write.

    A rough estimate from below: answers and statistics are small beside models. A store has room.
    """
    if stores.is_store(run.directory):
        return
    needed = bytes_to_write(run, empty, stages)

    def compare() -> None:
        free = bytes_free(run)
        if needed > free:
            raise ManuError(
                f"{run.directory}: the run is to write {amount(needed)} of models and "
                f"checkpoints, and the disk has {amount(free)} free. Free some space or give "
                "another folder with --output."
            )

    parallel.on_first_process(compare)


def bytes_free(run: Run) -> int:
    """Return the room on the disk of a run's folder, which need not be there."""
    place = next(one for one in (run.directory, *run.directory.parents) if one.exists())
    return shutil.disk_usage(place).free


def bytes_to_write(run: Run, empty: Loaded, stages: Collection[str]) -> int:
    """Return the bytes of the models and checkpoints that these stages are to write."""
    config, number = run.config, num_parameters(empty.model)
    kind = config.model.dtype or empty.hf_config.get("dtype") or empty.hf_config.get("torch_dtype")
    model = number * (jnp.dtype(kind).itemsize if kind in DTYPES else 4)

    def states(section: OptimizerSection, steps: int) -> int:
        count = min(MOST_STATES, max(steps - 1, 0) // section.checkpoint_every)
        return count * STATE_BYTES * number if section.lora is None else 0

    def lacks(*names: str) -> int:
        return sum(not parallel.exists(run.directory / name) for name in names)

    total = 0
    if "train" in stages and config.train.steps:
        is_retrained = config.train.retrained and config.model.retrained_path is None
        if missing := lacks(VANILLA, *[RETRAINED] * is_retrained):
            steps = max(config.train.steps, config.train.base_steps)
            total += missing * model + states(config.train, steps)
    if "unlearn" in stages:
        # An edit is small beside a model, and so are its checkpoints.
        trained = [
            one for one in config.trained if one.objective != SYSTEM_PROMPT and one.trains == "all"
        ]
        paths = {run.directory / "unlearned", *(run.model_path(one.name) for one in trained)}
        total += model * sum(not parallel.exists(path) for path in sorted(paths))
        total += max((states(one, one.steps or 0) for one in trained), default=0)
    return total
