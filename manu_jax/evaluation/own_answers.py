"""Ask a model what it answers for itself, where a request names nobody to keep (data/own_answers).

The answers are greedy, to the plain question of each form, up to the end of their first sentence.
"""

import functools
from collections.abc import Sequence

from manu_jax import parallel
from manu_jax.context import Run
from manu_jax.data.own_answers import (
    NEW_TOKENS,
    OwnQuestion,
    lacks_retain,
    own_questions,
    write_own,
)
from manu_jax.evaluation.generate import greedy
from manu_jax.types import PromptTemplate, Sample, question_sample


def answer_own_questions(run: Run) -> None:
    """Write the vanilla model's own answers into the run's folder, unless they are there.

    Does nothing where the benchmark names people to keep.
    """
    if not lacks_retain(run.read_benchmark) or parallel.exists(run.own_answers):
        return
    asked = own_questions(run.read_benchmark, seed=run.config.seed)
    samples = own_prompts(asked, run.vanilla.template)
    batch_size = run.config.evaluate.batch_size
    answers = greedy(run.vanilla, samples, new_tokens=NEW_TOKENS, batch_size=batch_size)
    parallel.on_first_process(functools.partial(write_own, run.own_answers, asked, answers))


def own_prompts(asked: Sequence[OwnQuestion], template: PromptTemplate) -> list[Sample]:
    """Return the prompt of each question."""
    return [
        question_sample(
            template.prompt(one.question, one.modality),
            "",
            (one.picture.image,) if one.picture is not None and one.modality == "image" else (),
            key=one.subject or "general",
        )
        for one in asked
    ]
