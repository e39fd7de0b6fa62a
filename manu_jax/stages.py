"""The stages of a run, in order. Each reads what earlier ones left in the folder, and adds its own.

    data       data/                              the synthetic benchmark, where the run makes one
    train      vanilla/, retrained/               where the run trains its models; the memory gate
    scores     [methods/NAME/]scores.safetensors  a score per neuron, from statistics/
    masks      [methods/NAME/]mask.safetensors    which neurons go
    unlearn    unlearned/                         the Hugging Face folder without them
               methods/NAME/model/                those of the baselines that train (unlearn:)
    evaluate   evaluation/, results.json          every model asked everything
    report     report.html

A stage whose files stand does nothing, so a run that was killed goes on where it was. The first
method of the config has its files at the top of the folder, the others in methods/NAME/.
"""

import dataclasses
import functools
import hashlib
import io
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax import masks, parallel
from manu_jax.config import Preset, RunConfig, UnlearnSection
from manu_jax.context import Run
from manu_jax.data import safeeraser
from manu_jax.data.forms import forms, has_form
from manu_jax.data.record import Benchmark, Person
from manu_jax.evaluation.differences import differences
from manu_jax.evaluation.distance import answer_kl, compare_truth_ratios
from manu_jax.evaluation.leakage import find_leakage
from manu_jax.evaluation.likelihood import share_right
from manu_jax.evaluation.metrics import bootstrap
from manu_jax.evaluation.shots import shots_of_run
from manu_jax.evaluation.suite import check_prompts, evaluate, evaluated_people, stored_records
from manu_jax.fingerprint import samples_hash
from manu_jax.folder import new_folder, versions
from manu_jax.importance.methods import load_scores, save_scores, scores_for
from manu_jax.models.loaded import Loaded, load, read_config, save_pretrained
from manu_jax.report.leakage import plain_interval, to_plain
from manu_jax.report.render import people_shown, render
from manu_jax.report.results import write_results
from manu_jax.selection import select
from manu_jax.training.memory import check_memory
from manu_jax.training.trainer import check_loss
from manu_jax.training.unlearner import place_of, reference_of, unlearn
from manu_jax.training.vanilla import remove_checkpoints, train_models
from manu_jax.types import MODALITIES, RETRAINED, SETS, VANILLA, ManuError, Neurons, Sample

logger = logging.getLogger(__name__)


def make_data(run: Run) -> None:
    """Write the benchmark if the run makes its own; read it either way."""
    data = run.config.data
    write, folder = run.benchmark_format.write, run.directory / "data"
    if write is not None and data.path is None and not parallel.exists(folder):
        parallel.on_first_process(functools.partial(write, folder, data, run.config.seed))
    sizes = ", ".join(f"{name} {len(run.benchmark.sets[name])}" for name in SETS)
    logger.info("data: people (topics) in each set: %s", sizes)


def make_models(run: Run) -> None:
    """Train the vanilla and the retrained model, unless they stand; then the memory gate."""
    config = run.config
    for path in (config.model.path, config.model.retrained_path):
        if path is not None:
            read_config(Path(path).expanduser())
    names = [VANILLA] + [RETRAINED] * (config.train.retrained and not config.model.retrained_path)
    missing = [name for name in names if not parallel.exists(run.directory / name)]
    if config.train.steps and missing:
        kept = _kept_models(config)
        # Only the first process needs to see them: it copies them into the run's folder.
        if kept is not None and parallel.broadcast(all((kept / name).is_dir() for name in names)):
            logger.info("train: models of an earlier run with the same settings, from %s", kept)
            parallel.on_first_process(functools.partial(_take, missing, kept, run.directory))
        else:
            train_models(
                run.benchmark,
                config.model,
                config.train,
                question_prompt=run.benchmark_format.question_prompt,
                directory=run.directory,
                seed=config.seed,
                mesh=run.mesh,
            )
            if kept is not None:
                parallel.on_first_process(functools.partial(_keep, names, run.directory, kept))
    remove_checkpoints(run.directory)
    check_prompts(
        run.vanilla,
        run.benchmark.sets,
        config.evaluate,
        question_prompt=run.benchmark_format.question_prompt,
        seed=config.seed,
    )
    for section in config.unlearn:
        check_loss(run.vanilla, section, place_of(section))
    if config.train.memory_gate:
        check_memory(run.vanilla, run.benchmark, config.train.memory_gate)


def make_scores(run: Run) -> None:
    """Score the neurons by every method of the config."""
    for method, folder in _methods_without(run, "scores.safetensors"):
        logger.info("scores: %s", method.preset)
        scores = scores_for(
            run.vanilla,
            method,
            run.forget_samples,
            run.keep_samples,
            batch_size=run.config.score_batch,
            seed=run.config.seed,
            directory=run.directory / "statistics" / method.preset,
        )
        made_from = {"preset": method.model_dump(mode="json"), "seed": run.config.seed}
        save_scores(folder / "scores.safetensors", scores, made_from)


def make_masks(run: Run) -> None:
    """Choose the neurons that go, by every method of the config."""
    for method, folder in _methods_without(run, "mask.safetensors"):
        mask = _mask(method, load_scores(folder / "scores.safetensors")[0], method.alpha)
        masks.save(
            folder / "mask.safetensors",
            mask,
            run.vanilla,
            preset=method.preset,
            alpha=method.alpha,
            data=samples_hash(run.forget_samples["image"] + run.forget_samples["text"]),
        )
        for line in masks.describe(mask):
            logger.info("masks: %s: %s", method.preset, line)


def make_unlearned(run: Run) -> None:
    """Write the Hugging Face folders of the first method's model, and of the trained baselines."""
    path = run.directory / "unlearned"
    if not parallel.exists(path):
        save_pretrained(_folded(run, run.config.method), path)
    for section in run.config.unlearn:
        path = run.directory / "methods" / section.name
        if section.objective != "system_prompt" and not parallel.exists(path / "model"):
            trained = unlearn(
                run.vanilla,
                section,
                forget=run.benchmark.facts("forget"),
                keep=run.benchmark.facts("retain", "celebrity", "general"),
                directory=path / "checkpoints",
                seed=run.config.seed,
                reference=_reference(run, section),
                decouple=_decouple_samples(run, section),
            )
            save_pretrained(trained, path / "model")
        parallel.on_first_process(
            functools.partial(shutil.rmtree, path / "checkpoints", ignore_errors=True)
        )


def make_evaluation(run: Run) -> None:
    """Ask every model everything, and write results.json."""
    if parallel.exists(run.directory / "results.json"):
        return
    begun = time.monotonic()
    rows = []
    models = []
    for name, loaded in _models(run):
        logger.info("evaluate: %s", name)
        rows += evaluate(
            loaded(),
            run.benchmark.sets,
            run.config.evaluate,
            question_prompt=run.benchmark_format.question_prompt,
            directory=run.directory / "evaluation",
            model_name=name,
            seed=run.config.seed,
        )
        models.append(name)
    forget = run.benchmark.sets["forget"]
    sweep = _sweep(run)
    distances = _distances(run, list(_models(run)))
    times = run.times()
    times["evaluate"] = times.get("evaluate", 0.0) + round(time.monotonic() - begun, 2)
    write = functools.partial(
        _write_results,
        run,
        rows,
        models=models,
        distances=distances,
        headline=run.config.method.preset,
        request={
            "people": [{"id": person.id, "name": person.name} for person in forget],
            "share": run.config.data.forget,
            "num_people": len(forget) + len(run.benchmark.sets["retain"]),
        },
        alpha_sweep=sweep,
        timings=times,
    )
    parallel.on_first_process(write)


def make_report(run: Run) -> None:
    """Write report.html."""
    parallel.on_first_process(functools.partial(_render, run.directory, run.benchmark))


STAGES: dict[str, Callable[[Run], None]] = {
    "data": make_data,
    "train": make_models,
    "scores": make_scores,
    "masks": make_masks,
    "unlearn": make_unlearned,
    "evaluate": make_evaluation,
    "report": make_report,
}


def _methods_without(run: Run, file: str) -> Iterator[tuple[Preset, Path]]:
    """Yield the methods whose folder has no such file yet, with the folder."""
    for method in run.config.methods:
        folder = run.method_folder(method)
        if not parallel.exists(folder / file):
            yield method, folder


def _mask(method: Preset, scores: Neurons, alpha: float) -> Neurons:
    layers = {tower: (part.first, part.end) for tower, part in method.layers.items()}
    return select(scores, alpha, method.scope, layers)


def _folded(run: Run, method: Preset) -> Loaded:
    mask, _ = masks.load(run.method_folder(method) / "mask.safetensors", run.vanilla)
    return masks.fold(run.vanilla, mask)


def _trained(run: Run, section: UnlearnSection) -> Loaded:
    if section.objective == "system_prompt":
        names = ", ".join(sorted(person.name for person in run.benchmark.sets["forget"]))
        prompt = section.prompt.replace("{names}", names)
        return dataclasses.replace(run.vanilla, system_prompt=prompt)
    path = run.directory / "methods" / section.name / "model"
    if not parallel.exists(path):
        raise ManuError(f"{path}: no model there. Run the stage `unlearn` first.")
    return load(path, run.config.model.dtype, run.mesh)


def _reference(run: Run, section: UnlearnSection) -> Loaded | None:
    """Return the model that stands still beside the one that is trained, if there has to be one."""
    name = reference_of(section)
    if name == RETRAINED:
        if not run.has_retrained:
            raise ManuError(
                f"unlearn ({section.name}): {section.objective} compares with a model that was "
                "tuned on the people to keep alone. Set train.retrained or model.retrained_path."
            )
        return run.load_model(RETRAINED, run.config.model.retrained_path)
    return run.vanilla if name == VANILLA else None


def _decouple_samples(run: Run, section: UnlearnSection) -> tuple[Sample, ...]:
    if section.decouple is None:
        return ()
    return safeeraser.decouple_samples(section.decouple.path, run.vanilla.template)


def _models(run: Run) -> Iterator[tuple[str, Callable[[], Loaded]]]:
    """Yield the name of each model to compare and how to get it; one is in memory at a time."""
    yield VANILLA, lambda: run.vanilla
    for method in run.config.methods:
        yield method.preset, functools.partial(_folded, run, method)
    for section in run.config.unlearn:
        yield section.name, functools.partial(_trained, run, section)
    if run.has_retrained:
        yield RETRAINED, lambda: run.load_model(RETRAINED, run.config.model.retrained_path)


def _sweep(run: Run) -> list[dict[str, Any]]:
    """Return the share of facts answered right by every method at every α of the sweep."""
    if not run.config.sweep.alphas:
        return []
    people = {
        "forget": run.benchmark.sets["forget"],
        "retain": run.benchmark.sets["retain"][: run.config.sweep.max_people],
    }
    samples = {
        (name, modality): forms(
            [fact for person in people[name] for fact in person.facts],
            modality,
            run.vanilla.template,
        )
        for name in people
        for modality in MODALITIES
    }
    points = []

    def measure(name: str, alpha: float, loaded: Loaded) -> None:
        for (set_name, modality), asked in samples.items():
            value = share_right(loaded, asked, run.config.evaluate.batch_size)
            points.append(
                dict(
                    method=name,
                    alpha=alpha,
                    set=set_name,
                    modality=modality,
                    value=value,
                    n=len(asked),
                )
            )

    measure(VANILLA, 0.0, run.vanilla)
    for method in run.config.methods:
        scores, _ = load_scores(run.method_folder(method) / "scores.safetensors")
        for alpha in run.config.sweep.alphas:
            mask = _mask(method, scores, alpha)
            measure(method.preset, alpha, masks.fold(run.vanilla, mask))
    if run.has_retrained:
        measure(RETRAINED, 0.0, run.load_model(RETRAINED, run.config.model.retrained_path))
    return points


def _distances(run: Run, models: Sequence[tuple[str, Callable[[], Loaded]]]) -> list[dict]:
    """Return each model's KL from the retrained one, on the facts to forget and to retain."""
    if not run.has_retrained or not run.config.evaluate.kl:
        return []
    section = run.config.evaluate
    reference = run.load_model(RETRAINED, run.config.model.retrained_path)
    found = []
    for name, loaded in models:
        model = loaded()
        if model.system_prompt:
            continue  # its prompts are not those of the reference, token by token
        for part in ("forget", "retain"):
            people = run.benchmark.sets[part]
            facts = [f for p in people[: section.max_people] for f in p.facts]
            for modality in MODALITIES:
                samples = forms(facts, modality, run.vanilla.template)
                values = answer_kl(model, reference, samples, batch_size=section.batch_size)
                interval = bootstrap(
                    values.tolist(),
                    [sample.key.partition("/")[0] for sample in samples],
                    resamples=section.resamples,
                    seed=run.config.seed,
                )
                place = {"model": name, "set": part, "modality": modality, "metric": "kl"}
                found.append(place | plain_interval(interval))
    return found


def _write_results(
    run: Run, rows: Any, *, models: Sequence[str], distances: list[dict], **rest: Any
) -> None:
    """Write results.json, with what follows from the records that now stand."""
    folder, section = run.directory / "evaluation", run.config.evaluate
    settings: dict[str, Any] = {"resamples": section.resamples, "seed": run.config.seed}
    records = {model: stored_records(folder / model) for model in models}
    leakage = [
        to_plain(
            model,
            find_leakage(records[model], records[VANILLA], erase=run.config.erase, **settings),
        )
        for model in models
    ]
    paired = [
        difference
        for against in (VANILLA, RETRAINED)
        if against in models
        for difference in differences(records, against, **settings)
    ]
    for model in models if RETRAINED in models else ():
        for modality in MODALITIES:
            place = ("forget", "classification", modality)
            sides = (records[name].get(place, ()) for name in (model, RETRAINED))
            found = compare_truth_ratios(*sides)
            if found is not None:
                where = {"model": model, "set": "forget", "modality": modality, "metric": "ks"}
                distances.append(where | dataclasses.asdict(found))
    sets = run.benchmark.sets
    asked = {name: evaluated_people(sets, name, section) for name in section.sets}
    write_results(
        run.directory,
        rows,
        models=models,
        leakage=leakage,
        differences=paired,
        distances=distances,
        skipped=_skipped(run, asked),
        shots=shots_of_run(sets, asked, section, run.config.seed),
        config=run.config.model_dump(mode="json"),
        **rest,
    )


def _skipped(run: Run, asked: Mapping[str, Sequence[Person]]) -> dict[str, int]:
    """Return how many items of each kind are not asked or measured, of the sets asked for."""
    num_people = sum(len(run.benchmark.sets[name]) for name in asked)
    people = [person for part in asked.values() for person in part]
    counts = {"people beyond evaluate.max_people": num_people - len(people)}
    for modality in MODALITIES:
        counts[f"facts that have no {modality} form"] = sum(
            not has_form(fact, modality) for person in people for fact in person.facts
        )
    return dict(run.benchmark.skipped) | {what: count for what, count in counts.items() if count}


def _render(directory: Path, benchmark: Benchmark) -> None:
    people = {person.id: person for name in SETS for person in benchmark.sets[name][::-1]}
    portraits = {
        name: _png(people[name].images[0])
        for name in people_shown(directory)
        if name in people and people[name].images
    }
    names = {identity: person.name for identity, person in people.items()}
    logger.info("report: %s", render(directory, portraits, names))


def _kept_models(config: RunConfig) -> Path | None:
    """Return where trained models are kept for other runs with the same data and training."""
    if config.cache is None or config.model.path is not None or config.data.path is not None:
        return None
    made_from = [
        config.seed,
        config.model.model_dump(mode="json"),
        config.data.model_dump(mode="json"),
        config.train.model_dump(mode="json"),
        versions(),
    ]
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.cache).expanduser() / "models" / digest


def _keep(names: Sequence[str], directory: Path, kept: Path) -> None:
    """Put models of a run where others find them."""
    with new_folder(kept) as folder:
        for name in names:
            shutil.copytree(directory / name, folder / name)


def _take(names: Sequence[str], kept: Path, directory: Path) -> None:
    """Put models that were kept into a run's folder."""
    for name in names:
        with new_folder(directory / name) as folder:
            shutil.copytree(kept / name, folder, dirs_exist_ok=True)


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
