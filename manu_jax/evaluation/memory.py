"""The memorisation gate: a model can only be seen to forget what it knew."""

import logging

from manu_jax.data.forms import forms
from manu_jax.data.record import Benchmark
from manu_jax.evaluation.likelihood import share_right
from manu_jax.models.loaded import Loaded
from manu_jax.types import MODALITIES, ManuError, Modality

logger = logging.getLogger(__name__)


def known_shares(
    loaded: Loaded, benchmark: Benchmark, *, batch_size: int = 32
) -> dict[Modality, float]:
    """Return, per modality, the share of the forget set's facts that the model answers right.

    Right is an answer whose every token is the model's first choice, so that greedy decoding gives
    it word for word. A modality without facts is left out.
    """
    facts, template = benchmark.facts("forget"), loaded.template
    shares: dict[Modality, float] = {}
    for modality in MODALITIES:
        samples = forms(facts, modality, template)
        if samples:
            shares[modality] = share_right(loaded, samples, batch_size)
    return shares


def check_memory(
    loaded: Loaded, benchmark: Benchmark, threshold: float, *, batch_size: int = 32
) -> dict[Modality, float]:
    """Return `known_shares`; ManuError where one is below `threshold`, a share in [0, 1]."""
    shares = known_shares(loaded, benchmark, batch_size=batch_size)
    if not shares:
        raise ManuError(
            "memory gate: the people to forget have no facts in either form, so it can't be told "
            "what the model knows about them. Give the training folder with data.train_path, or "
            "turn the gate off with train.memory_gate=0."
        )
    known = ", ".join(f"{modality} {share:.1%}" for modality, share in shares.items())
    if min(shares.values()) < threshold:
        raise ManuError(
            f"memory gate: the model answers too little about the people to forget: {known}; "
            f"{threshold:.1%} is asked for in each modality. What it does not know it can't "
            "forget: train longer (train.steps, train.base_steps), or lower train.memory_gate."
        )
    logger.info("memory gate: of the facts to forget the model knows %s", known)
    return shares
