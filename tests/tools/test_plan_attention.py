"""The table of what kernels save: its steps are those of a plan, its FLOPs those of the page."""

from pathlib import Path

import plan_attention
import plan_table
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"


def cells(lines):
    """Return {(step, tokens): the other cells} of the rows of a table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): row[2:] for row in rows}


@pytest.mark.slow
@pytest.mark.pods
def test_the_reference_computes_what_the_page_says(monkeypatch, tmp_path, capsys):
    """By arithmetic for GPUs, which knows no temporaries and no kernels of TPUs."""
    monkeypatch.setitem(plan_table.PODS, plan_attention.POD, "gpu=h100:8")
    assert plan_attention.main(["--cache", str(tmp_path), "--tokens", "768", "2880"]) == 0
    found = cells(capsys.readouterr().out.splitlines()[2:])
    table = PAGE.read_text(encoding="utf-8").partition("| step | tokens | temporaries, ref")[2]
    written = cells(table.partition("\n\n")[0].splitlines()[2:])
    assert {step for step, _ in written} == {*plan_attention.SHOWN}
    assert {tokens for _, tokens in written} == {f"{n:,}" for n in plan_attention.TOKENS}
    assert len(found) == 2 * len(plan_attention.SHOWN)
    for place, row in found.items():
        assert row[2] == written[place][2], place
