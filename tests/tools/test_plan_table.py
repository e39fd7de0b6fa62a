"""The table of released models on pods: its steps are those of a plan, and a cell says enough."""

import dataclasses

import plan_table
import pytest

from manu_jax.planning.chips import GIB, target_of
from manu_jax.planning.items import planned
from manu_jax.planning.plan import Row
from manu_jax.planning.world import world_of


@pytest.mark.parametrize("is_auto", [False, True])
def test_every_column_is_a_step_of_the_plan(is_auto):
    config = plan_table.config_of("llava-1.5-7b", is_auto=is_auto)
    sizes = {kind: (1, 8, 1) for kind in ("score", "train", "decode")} if is_auto else None
    assumed = dataclasses.replace(plan_table.ASSUMED, samples=plan_table.BATCH)
    world = world_of(config, target_of("gpu=h100:8"), assumed, sizes=sizes)
    names = [item.name for item in planned(world)]
    assert all(names.count(name) == 1 for name in plan_table.STEPS.values()), names


def test_cells_say_what_fits_where(monkeypatch):
    monkeypatch.setattr(plan_table, "version", lambda package: "1")
    row = Row(
        name="", stage="", fits=True, weights=0, optimizer=0, other=0, temporaries=0, total=2 * GIB,
        limit=3 * GIB, flops=0.0, flops_in_loops=0.0, moved={"all-gather": {"bytes": GIB / 2}},
        calls=1.0, rows=1, real_rows=1, compute=0.0, memory=0.0, network=0.0, at_least=0.25,
        at_most=0.5, bound="", compile_seconds=1.0, refused="", mesh=(2, 1, 8),
    )  # fmt: skip
    first = next(iter(plan_table.cells()))
    large = dataclasses.replace(row, fits=False)
    cells = {first: row, dataclasses.replace(first, step="answers"): large}
    text = plan_table.table(cells)
    assert "| 2.0 GiB; 0.5 moved; 0.25–0.5 s |" in text
    assert "| **no** (2.0 GiB) (2, 1, 8) |" in text
    assert "2 of 135 steps compiled in 2 s" in text and "; 1 of them do not fit." in text
    assert len(set(plan_table.cells())) == 135


def test_chosen_columns_alone_are_compiled(monkeypatch, tmp_path, capsys):
    compiled = []

    def noted(cell, cache, *, compiles):
        compiled.extend([cell] * compiles)

    monkeypatch.setattr(plan_table, "_row", noted)
    monkeypatch.setattr(plan_table, "version", lambda package: "1")
    assert plan_table.main(["--cache", str(tmp_path), "--steps", "erase,suppress"]) == 0
    assert {(cell.step, cell.pod) for cell in compiled} == {
        ("erase", "v5e-16"),
        ("suppress", "v5e-16"),
    }
    assert len(compiled) == 2 * len(plan_table.MODELS)
    assert plan_table.main(["--cache", str(tmp_path), "--steps", "eras"]) == 1
    assert "--steps eras: known: statistics, " in capsys.readouterr().err
