"""Write what a run has measured: results.json from the run, its rows and its analyses."""

from collections.abc import Mapping, Sequence
from typing import Any

from manu_jax.evaluation.analyses.analysis import Evaluated
from manu_jax.evaluation.shots import shots_of_run
from manu_jax.evaluation.suite import evaluated_people, skipped_items, unmeasured_items
from manu_jax.report.results import Kept, write_results
from manu_jax.types import VANILLA, Modality


def write_results_of(
    evaluated: Evaluated,
    rows: Sequence[Mapping[str, Any]],
    analyses: Mapping[str, Sequence[Any]],
    *,
    absent: Mapping[Modality, str],
    timings: Mapping[str, float],
) -> None:
    """Write results.json: what was measured, of whom, and what was left out.

    absent: as of the run, which all processes ask for together.
    """
    run = evaluated.run
    sets, section = run.benchmark.sets, run.config.evaluate
    people = {name: evaluated_people(sets, name, section) for name in section.sets}
    write_results(
        run.directory,
        rows,
        models=evaluated.models,
        headline=run.config.method.name,
        request={
            "people": [{"id": person.id, "name": person.name} for person in sets["forget"]],
            "share": run.benchmark_format.share(run.config.data),
            "num_people": run.num_people,
        },
        kept=Kept(
            run.config.data.keep_share,
            used=tuple(person.id for person in sets["retain"]),
            unseen=tuple(person.id for person in sets["unseen"]),
        ),
        analyses=analyses,
        skipped=skipped_items(run.benchmark, people, unmeasured_items(evaluated.records[VANILLA])),
        shots=shots_of_run(sets, people, section, seed=run.config.seed),
        prompts=run.vanilla.template.source,
        notes=run.benchmark.notes,
        absent=absent,
        config=run.config.model_dump(mode="json"),
        timings=timings,
    )
