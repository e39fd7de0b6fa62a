"""The stages of a run, in order. Each reads what earlier stages left in the folder.

    data       data/                              the synthetic benchmark, where the run makes one
    train      vanilla/, retrained/               where the run trains its models; the memory gate
    scores     [methods/NAME/]scores.safetensors  a score per neuron, from statistics/
    masks      [methods/NAME/]mask.safetensors    which neurons are removed
               [methods/NAME/]edit.safetensors    what a method that trains nothing makes instead
    unlearn    [methods/NAME/]edit.safetensors    what a method that trains has changed, or
               methods/NAME/model/                the whole model, as a Hugging Face folder
               unlearned/                         the model of the first method, as such a folder
    evaluate   evaluation/, results.json          every model asked everything, and the analyses
    report     report.html, neurons.html
    push       pushed.json                        unlearned/ sent to the hub, where `push` names it

A stage whose files exist does nothing, so a killed run goes on where it was; before the first one
keys.py moves away what was made from another config. The first method of the config has its files
at the top of the folder, the others in methods/NAME/.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from manu_jax import parallel, stores
from manu_jax.absent import SomeMethod, check_goal
from manu_jax.config import SYSTEM_PROMPT, MaskMethod, UnlearnSection
from manu_jax.context import EDIT, MASK, Run, select_neurons
from manu_jax.data.benchmarks import decouple_samples
from manu_jax.edits import masks
from manu_jax.edits.edit import Edit
from manu_jax.evaluation.alpha import choice_of
from manu_jax.evaluation.analyses.analysis import Evaluated
from manu_jax.evaluation.analyses.registry import ANALYSES
from manu_jax.evaluation.known import write_known
from manu_jax.evaluation.memory import check_memory
from manu_jax.evaluation.own_answers import answer_own_questions
from manu_jax.evaluation.published import ask_published
from manu_jax.evaluation.published_export import export
from manu_jax.evaluation.suite import evaluate
from manu_jax.importance.methods import edit_for, load_scores, save_scores, scores_for
from manu_jax.models.loaded import Loaded, save_pretrained
from manu_jax.parts import train_key
from manu_jax.preflight import check_questions, without_weights
from manu_jax.report.card import make_push
from manu_jax.report.of_run import write_results_of
from manu_jax.report.render import render_with_portraits
from manu_jax.training.kept import keep_models, kept_folder, take_models
from manu_jax.training.unlearner import reference_of, unlearn
from manu_jax.training.vanilla import remove_checkpoints, train_models
from manu_jax.types import KEEP_SETS, RETRAINED, SETS, VANILLA, Sample

logger = logging.getLogger(__name__)


def make_data(run: Run) -> None:
    """Write the benchmark if the run makes its own; read it either way."""
    data, made_by, folder = run.config.data, run.benchmark_format, run.directory / "data"
    if data.path is None and not parallel.exists(folder):
        if made_by.write is not None:
            write = made_by.write
            parallel.on_first_process(lambda: write(folder, data, run.config.seed))
        elif made_by.known is not None:
            write_known(run, folder)
    sizes = ", ".join(f"{name} {len(run.asked_benchmark.sets[name])}" for name in SETS)
    logger.info("data: people (topics) in each set: %s", sizes)
    check_goal(run.config, run.absent)
    for form, why in run.absent.items():
        logger.info("data: the %s form is absent, since %s", form, why)


def make_models(run: Run) -> None:
    """Train the vanilla and the retrained model, unless they exist; check what they are to do."""
    config = run.config
    names = [VANILLA] + [RETRAINED] * (config.train.retrained and not config.model.retrained_path)
    missing = [name for name in names if not parallel.exists(run.directory / name)]
    if config.train.steps and missing:
        run.turn_to("train")
        if config.model.path is not None:
            check_questions(run, without_weights(run))  # training takes hours, and changes none
        kept = kept_folder(config, train_key(config))
        # Only the first process needs to see them: it copies them into the run's folder.
        if kept is not None and parallel.broadcast(all((kept / name).is_dir() for name in names)):
            logger.info("train: models of an earlier run with the same settings, from %s", kept)
            parallel.on_first_process(functools.partial(take_models, missing, kept, run.directory))
        else:
            train_models(
                run.whole_benchmark,
                config.model,
                config.train.model_copy(update={"retrained": RETRAINED in names}),
                question_prompt=run.benchmark_format.question_prompt,
                directory=run.directory,
                seed=config.seed,
                mesh=run.mesh,
            )
            if kept is not None:
                parallel.on_first_process(
                    functools.partial(keep_models, names, run.directory, kept)
                )
    remove_checkpoints(run.directory)
    run.turn_to("decode")
    answer_own_questions(run)
    check_questions(run, run.vanilla)
    if config.train.memory_gate:
        check_memory(run.vanilla, run.benchmark, config.train.memory_gate)


def make_scores(run: Run) -> None:
    """Score the neurons by every method of the config that removes some."""
    without = _methods_without(run, run.masks, "scores.safetensors", stage="scores")
    for method, folder in without:
        logger.info("scores: %s", method.name)
        run.turn_to("score")
        scores = scores_for(run.job_of(method))
        made_from = {"method": method.scored_by(), "name": method.name, "seed": run.config.seed}
        save_scores(folder / "scores.safetensors", scores, made_from)


def make_masks(run: Run) -> None:
    """Make the mask or the edit of every method of the config that trains nothing."""
    for method, folder in _methods_without(run, run.masks, MASK, stage="masks"):
        scores, _ = load_scores(folder / "scores.safetensors")
        run.turn_to("decode" if method.auto is not None else "score")
        choice = choice_of(run, method, scores)
        alpha = method.scored_alpha if choice is None else choice.alpha
        mask = select_neurons(method, scores, alpha)
        masks.save(
            folder / MASK,
            mask,
            run.vanilla,
            preset=method.name,
            alpha=alpha,
            data=run.forget_hash,
            choice=None if choice is None else choice.plain(),
        )
        for line in masks.describe(mask):
            logger.info("masks: %s: %s", method.name, line)
    others = [method for method in run.config.methods if not isinstance(method, MaskMethod)]
    for method, _ in _methods_without(run, others, EDIT, stage="masks"):
        logger.info("masks: %s", method.name)
        run.turn_to("score")
        _save_edit(run, method.name, edit_for(run.job_of(method)), "masks")


def make_unlearned(run: Run) -> None:
    """Train every method of the config that trains; write the first method's model as a folder."""
    path, first = run.directory / "unlearned", run.config.method.name
    for method in run.config.all_methods:
        if isinstance(method, UnlearnSection) and method.objective != SYSTEM_PROMPT:
            _train(run, method)
        if method.name == first and not parallel.exists(path):
            save_pretrained(run.load_method(first), path)


def make_evaluation(run: Run) -> None:
    """Ask every model everything, and write results.json."""
    if parallel.exists(run.directory / "results.json"):
        return
    begun = time.monotonic()
    run.turn_to("decode")
    rows = []
    models = run.models()
    for name, load_model in models.items():
        logger.info("evaluate: %s", name)
        loaded = load_model()
        rows += evaluate(
            loaded,
            run.benchmark.sets,
            run.config.evaluate,
            question_prompt=run.benchmark_format.question_prompt,
            directory=run.directory / "evaluation",
            model_name=name,
            seed=run.config.seed,
        )
        ask_published(run, loaded, name)
        del loaded  # so that one model beside vanilla is in memory while the next is made
    evaluated = Evaluated(run, tuple(models))
    analyses = {name: analysis.rows_of(evaluated) for name, analysis in ANALYSES.items()}
    times = run.times()
    times["evaluate"] = times.get("evaluate", 0.0) + round(time.monotonic() - begun, 2)
    parallel.on_first_process(functools.partial(export, run, tuple(models)))
    about = {"absent": run.absent, "timings": times}
    write = functools.partial(write_results_of, evaluated, rows, analyses, **about)
    parallel.on_first_process(write)


def make_report(run: Run) -> None:
    """Write report.html."""
    write = functools.partial(render_with_portraits, run.directory, run.benchmark)
    parallel.on_first_process(write)


STAGES: dict[str, Callable[[Run], None]] = {
    "data": make_data,
    "train": make_models,
    "scores": make_scores,
    "masks": make_masks,
    "unlearn": make_unlearned,
    "evaluate": make_evaluation,
    "report": make_report,
    "push": make_push,
}


def _methods_without(
    run: Run, methods: Iterable[SomeMethod], file: str, *, stage: str
) -> Iterator[tuple[SomeMethod, Path]]:
    """Yield those of the methods whose folder has no such file yet, with the folder.

    How long the caller works on each is kept as the stage's time for it.
    """
    for method in methods:
        folder = run.method_folder(method.name)
        if not parallel.exists(folder / file):
            begun = time.monotonic()
            yield method, folder
            run.set_method_time(stage, method.name, time.monotonic() - begun)


def _save_edit(run: Run, name: str, edit: Edit, stage: str) -> None:
    run.save_edit(name, edit)
    for line in edit.describe():
        logger.info("%s: %s: %s", stage, name, line)


def _train(run: Run, section: UnlearnSection) -> None:
    """Train by a section, unless what it makes is there: an edit, or the folder of a model."""
    path, edit_path = run.model_path(section.name), run.method_folder(section.name) / EDIT
    checkpoints = run.directory / "methods" / section.name / "checkpoints"
    if not parallel.exists(path) and not parallel.exists(edit_path):
        begun = time.monotonic()
        run.turn_to("train")
        texts = run.texts_of(section)  # which may move vanilla for a while
        made = unlearn(
            run.vanilla,
            run.in_forms(section),
            forget=run.benchmark.facts("forget"),
            keep=run.benchmark.facts(*KEEP_SETS),
            directory=checkpoints,
            seed=run.config.seed,
            reference=_reference(run, section),
            decouple=_decouple_samples(run, section),
            portraits=run.portraits,
            texts=texts,
        )
        if isinstance(made, Loaded):
            save_pretrained(made, path)
        else:
            _save_edit(run, section.name, made, "unlearn")
        run.set_method_time("unlearn", section.name, time.monotonic() - begun)
    parallel.on_first_process(functools.partial(_remove, checkpoints))


def _remove(folder: Path) -> None:
    """Remove a folder, and the one around it where nothing else is there."""
    stores.remove_folder(folder)
    if not stores.is_store(folder):  # where no folder is empty
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _reference(run: Run, section: UnlearnSection) -> Loaded | None:
    """Return the model that an objective compares with the trained one, if it needs one."""
    name = reference_of(section)
    if name == RETRAINED:
        return run.load_model(RETRAINED, run.config.model.retrained_path)
    return run.vanilla if name == VANILLA else None


def _decouple_samples(run: Run, section: UnlearnSection) -> tuple[Sample, ...]:
    if section.decouple is None:
        return ()
    return decouple_samples(run.config.data, section.decouple.path, run.vanilla.template)
