"""What kernels for attention save on a TPU pod: the table of docs/devices.md.

    python tools/plan_attention.py --cache DIR [--tokens 768 2880 4096]

Compiles statistics and attribution of LLaVA-1.5-7B with the TPU compiler for v5e:4x4, all chips on
fsdp, 32 samples a batch, once with `attention: auto` and once with `attention: reference`. What was
compiled is kept in --cache.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from plan_table import MODELS, PODS, STEPS, config_of

from manu_jax.config.base import AttentionForm, Remat
from manu_jax.planning.chips import GIB, target_of
from manu_jax.planning.plan import Row, planned, row_of
from manu_jax.planning.world import Assumed, world_of
from manu_jax.run import exit_status

MODEL, POD = "LLaVA-1.5-7B", "v5e-16"
# What is shown → the step, and what its backward pass computes anew; None: as the config has it
SHOWN: dict[str, tuple[str, Remat | None]] = {
    "attribution": ("attribution", None),
    "attribution with remat all": ("attribution", "all"),
    "statistics": ("statistics", None),
}
FORMS: tuple[AttentionForm, ...] = ("reference", "auto")
TOKENS = (768, 2880, 4096)  # LLaVA-1.5, LLaVA-NeXT, its context


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", required=True, metavar="DIR", help="where results are kept")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="of a sample")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(Path(options.cache), options.tokens))


def _run(cache: Path, lengths: Sequence[int]) -> None:
    print("| step | tokens | temporaries, reference | kernels | FLOPs, reference | kernels |")
    print("|---" * 6 + "|")
    for shown in SHOWN:
        for tokens in lengths:
            rows = [row_of_form(shown, tokens, form, cache=cache) for form in FORMS]
            memory = " | ".join(_memory(row) for row in rows)
            flops = " | ".join(f"{row.flops / 1e12:,.0f} T" for row in rows)
            print(f"| {shown} | {tokens:,} | {memory} | {flops} |", flush=True)


def row_of_form(shown: str, tokens: int, form: AttentionForm, *, cache: Path) -> Row:
    """Return what the plan says of a step with samples of so many tokens."""
    step, remat = SHOWN[shown]
    index = cache / f"attention.{shown}.{tokens}.{form}.json"
    if index.exists():
        return Row(**json.loads(index.read_text()))
    config = config_of(MODELS[MODEL]).model_copy(update={"attention": form})
    world = world_of(config, target_of(PODS[POD]), Assumed(tokens=tokens, samples=1000))
    item = next(item for item in planned(world) if item.name == STEPS[step])
    make = item.make
    own = dataclasses.replace(item, make=lambda world, rows, _: make(world, rows, remat))
    row = row_of(own, world, keep=cache)
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(json.dumps(dataclasses.asdict(row)))
    return row


def _memory(row: Row) -> str:
    """Return the temporaries of a chip; of a step that does not fit, all that it would hold."""
    if row.temporaries is None or not row.fits:
        return f"**does not fit** ({row.total / GIB:.1f} GiB in all)"
    return f"{row.temporaries / GIB:.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())
