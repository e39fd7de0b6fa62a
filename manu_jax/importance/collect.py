"""The loop that turns samples into statistics: streamed, resumable, on any mesh.

Each batch is measured and added on the device; the sums leave it once per set (and at each partial
save). A loop that was killed goes on from its partial file, to the same numbers.
"""

import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from manu_jax import faults, parallel
from manu_jax.config import MethodSettings, StatisticsMethod
from manu_jax.data.batches import Batches, batching, encode_all
from manu_jax.data.forms import forms
from manu_jax.data.record import Fact
from manu_jax.fingerprint import neurons_hash, samples_hash, weights_hash
from manu_jax.folder import expand_path
from manu_jax.importance import statistics as files
from manu_jax.importance.functions import statistics_method
from manu_jax.importance.gradients import per_example_gradients
from manu_jax.importance.statistics import (
    AnyStatistics,
    PositionStatistics,
    Statistics,
    check_statistics,
)
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.layers import Remat
from manu_jax.progress import Progress
from manu_jax.types import (
    MODALITIES,
    SIGNALS,
    Array,
    Batch,
    Capture,
    ManuError,
    Modality,
    Neurons,
    Sample,
    Signal,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CaptureStep:
    """What a scoring step computes. Static: one compiled step for each.

    capture: of the activation signal; None is the gradient signal of `objective`. fades: the
    attributions of a sample are multiplied by the logistic function of its objective + a fade,
    which is an argument of the step. remat: what a backward pass computes again.
    """

    towers: tuple[tuple[str, tuple[int, int]], ...]
    capture: Capture | None
    objective: str
    threshold: float
    fades: bool
    remat: Remat

    @property
    def is_of_batches(self) -> bool:
        """Whether a statistic is a function of a whole batch, and not of each sample."""
        return self.capture is not None and self.capture.reduction == "position"


def score(
    loaded: Loaded,
    records: Sequence[Fact],
    modality: Modality,
    *,
    signal: Signal = "activation",
    preset: str | MethodSettings = "paper",
    batch_size: int = 32,
    path: str | os.PathLike | None = None,
) -> AnyStatistics:
    """Return the statistics of facts in one form; those of several calls add.

    preset: a method of the kind "statistics", or the preset of one, which says how neurons are
    measured; its signal is replaced by `signal`. Facts that do not have the form are left out.
    path: see `collect`. ManuError where none has it, and for an unknown form or signal.
    """
    for what, given, known in (("modality", modality, MODALITIES), ("signal", signal, SIGNALS)):
        if given not in known:
            raise ManuError(f"score: {what}: expected one of {', '.join(known)}, got {given!r}.")
    method = statistics_method(preset).model_copy(update={"signal": signal})
    samples = forms(records, modality, loaded.template)
    return collect(loaded, samples, method, modality=modality, batch_size=batch_size, path=path)


def collect(
    loaded: Loaded,
    samples: Sequence[Sample],
    method: StatisticsMethod,
    *,
    modality: Modality,
    batch_size: int = 32,
    gates: Neurons | None = None,
    fade: float | None = None,
    path: str | os.PathLike | None = None,
    save_every: int = 50,
) -> AnyStatistics:
    """Return the statistics of `samples`, all of one modality, as `method` measures them; NumPy.

    gates: factors [L, F] of neurons in the forward pass (1 − mask of those removed already).
    fade: gradient signal only; samples whose objective is below −fade fade out; None: none do. Of
    a method with a fade, both run the same program. batch_size: rounded
    up to a multiple of the mesh's data and fsdp axes, except for statistics by position, which
    depend on it: there rows of weight 0 fill up the mesh. path: the file of the statistics. If it
    exists and was made from the same model, samples and settings, it is read; otherwise a partial
    file is written every `save_every` batches. Raises ManuError where there are no samples, a sum
    is not finite, or the file was made from something else.
    """
    if not samples:
        raise ManuError(
            f"scoring, {modality} form: no samples. Give at least one fact that has this form."
        )
    capture_step = capture_step_of(loaded, method, modality, fade=fade)
    if not capture_step.fades:
        fade = None
    if not capture_step.is_of_batches:
        batch_size = _filled(loaded, batch_size)
    made_from = {}
    if path is not None:
        path = expand_path(path)
        made_from = {
            "model": weights_hash(loaded.model),
            "samples": samples_hash(samples),
            "num_samples": len(samples),
            "modality": modality,
            "batch_size": batch_size,
            "gates": None if gates is None else neurons_hash(gates),
            "capture_step": _plain(capture_step, fade),
        }
        if parallel.exists(path):
            return _read(path, made_from, capture_step)
    lengths = lengths_of(capture_step)
    partly_from = {**made_from, "lengths": lengths}  # other lengths make other batches
    total, num_done = _resume(path, partly_from)
    batches = Batches(
        loaded,
        encode_all(loaded, samples),
        batch_size,
        rows=parallel.batch_rows(loaded.mesh, _filled(loaded, batch_size)),
        **lengths,
    )
    with parallel.on_mesh(loaded.mesh), Progress("scoring", len(batches), num_done) as progress:
        gates = None if gates is None else parallel.put_replicated(dict(gates), loaded.mesh)
        for index in range(num_done, len(batches)):
            batch = parallel.put_batch(batches.batch_at(index), loaded.mesh)
            if total is None:
                total = zero(loaded, batch, capture_step)
            total = add_batch(
                total,
                loaded.model,
                batch,
                gates=gates,
                capture_step=capture_step,
                fade=fade_of(capture_step, fade),
            )
            progress.advance()
            is_due = faults.stop_is_due()
            if path is not None and (is_due or (index + 1) % save_every == 0):
                files.save(_partial(path), total, {**partly_from, "num_batches": index + 1})
            faults.stop_if_due()
    assert total is not None
    total = parallel.gather(total)
    check_statistics(total, f"statistics of {len(samples):,} samples, {modality} form")
    if path is not None:
        files.save(path, total, made_from)
        remove = functools.partial(_partial(path).unlink, missing_ok=True)
        parallel.on_first_process(remove)
    return total


def lengths_of(capture_step: CaptureStep) -> dict[str, Any]:
    """Return the settings of `Batches` by which a step's lengths are chosen.

    By position, statistics depend on who shares a batch: there, lengths do not depend on its size.
    """
    return {} if capture_step.is_of_batches else batching()


@functools.partial(jax.jit, static_argnames=("capture_step",), donate_argnums=0)
def add_batch(
    total: AnyStatistics,
    model: Any,
    batch: Batch,
    *,
    gates: Neurons | None,
    capture_step: CaptureStep,
    fade: Array | None = None,
) -> AnyStatistics:
    """Return the statistics with one batch; runs whole on the device. fade: of `fade_of`."""
    z_by_tower = values_of(model, batch, gates=gates, fade=fade, capture_step=capture_step)
    if isinstance(total, PositionStatistics):
        return total.add(z_by_tower)
    return total.add(z_by_tower, batch.example_weights_B)


def values_of(
    model: Any,
    batch: Batch,
    *,
    gates: Neurons | None,
    capture_step: CaptureStep,
    fade: Array | None = None,
) -> dict[str, Any]:
    """Return what statistics are made of, of each sample of a batch: {tower: [L, B, F]}.

    By position, of the whole batch: {"tower.matrix": [L or 1, 4, rows]}. fade: of `fade_of`. Pure.
    """
    if capture_step.capture is not None:
        return model(batch, gates=gates, capture=capture_step.capture).activations
    z_by_tower, values_B = per_example_gradients(
        model,
        batch,
        dict(capture_step.towers),
        objective=capture_step.objective,
        gates=gates,
        remat=capture_step.remat,
    )
    if fade is None:
        return z_by_tower
    weights_1B1 = jax.nn.sigmoid(values_B + fade)[None, :, None]
    return {tower: z_LBF * weights_1B1 for tower, z_LBF in z_by_tower.items()}


def fade_of(capture_step: CaptureStep, fade: float | None) -> np.ndarray | None:
    """Return the argument `fade` of a step: ∞, whose logistic function is 1, where none is given.

    None where the step has none.
    """
    if not capture_step.fades:
        return None
    return np.asarray(math.inf if fade is None else fade, np.float32)


def zero(loaded: Loaded, batch: Batch, capture_step: CaptureStep) -> AnyStatistics:
    """Return the statistics of no samples, laid out as `add_batch` returns them."""
    towers = dict(capture_step.towers)
    capture = capture_step.capture
    if not capture_step.is_of_batches:
        return _zero_samples(capture_step)
    shapes = jax.eval_shape(lambda model, batch: model(batch, capture=capture), loaded.model, batch)
    return PositionStatistics.zero(
        {
            key: (towers[key.partition(".")[0]][0], *shape.shape[1:])
            for key, shape in shapes.activations.items()
            if key.partition(".")[0] in towers
        }
    )


@functools.partial(jax.jit, static_argnames="capture_step")
def _zero_samples(capture_step: CaptureStep) -> Statistics:
    return Statistics.zero(dict(capture_step.towers), capture_step.threshold)


def capture_step_of(
    loaded: Loaded, method: StatisticsMethod, modality: Modality, *, fade: float | None = None
) -> CaptureStep:
    """Return what a scoring step of `method` computes on facts in one form.

    fade: a fade beside the method's own.
    """
    scored = method.scored_towers(loaded.towers, (modality,))
    missing = [tower for tower in scored if tower not in loaded.towers]
    if missing:
        raise ManuError(
            f'method "{method.name}": the model has no tower {", ".join(missing)}; '
            f"it has {', '.join(sorted(loaded.towers))}."
        )
    capture = Capture(method.reduction, method.layer_pooling, method.threshold, method.clamp)
    towers = tuple((tower, loaded.towers[tower]) for tower in scored)
    is_gradient = method.signal == "gradient"
    return CaptureStep(
        towers,
        None if is_gradient else capture,
        method.objective if is_gradient else "",
        method.threshold,
        is_gradient and (fade is not None or method.fade is not None),
        method.remat if is_gradient else "none",
    )


def _filled(loaded: Loaded, batch_size: int) -> int:
    """Return the rows of a batch once they divide over the mesh's data and fsdp axes."""
    return parallel.filled(batch_size, loaded.mesh)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _resume(path: Path | None, made_from: Mapping[str, Any]) -> tuple[AnyStatistics | None, int]:
    """Return the partial sums and the number of batches in them, where a partial file fits."""
    if path is None or not parallel.exists(_partial(path)):
        return None, 0
    total, found = files.load(_partial(path))
    num_batches = found.pop("num_batches", 0)
    if found != made_from:
        logger.info("%s was made from something else: starting over", _partial(path))
        return None, 0
    return total, num_batches


def _read(path: Path, made_from: Mapping[str, Any], capture_step: CaptureStep) -> AnyStatistics:
    total, found = files.load(path)
    keys = {*found, *made_from}
    if not capture_step.is_of_batches:
        keys.discard("batch_size")  # the sums are the same, and another mesh may ask for another
    differing = sorted(key for key in keys if found.get(key) != made_from.get(key))
    if differing:
        raise ManuError(
            f"statistics {path} were made from other things (differing: {', '.join(differing)}). "
            "Delete the file or give another path."
        )
    return total


def _plain(capture_step: CaptureStep, fade: float | None) -> Any:
    """Return what was captured, and the fade, as they read back from JSON."""
    values = dataclasses.asdict(capture_step)
    del values["fades"]
    return json.loads(json.dumps({**values, "fade": fade}))
