"""What `mesh: auto` takes for a released model, and its steps compiled there: docs/devices.md.

    python tools/plan_auto.py --model llava-1.5-13b --target tpu=v5e:4x4 --cache DIR [--steps TEXT]
        [--attackers all]

Of statistics, attribution, learned gates (remat: all), answers and likelihoods, in the configs and
with the samples of tools/plan_table.py. What was compiled is kept in --cache. --steps: compile
those alone whose name has this text; "" for none. --attackers: all: the audit's attackers train
all weights of the decoder, and no adapters.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from plan_table import ASSUMED, MODELS, config_of

from manu_jax.config import RunConfig
from manu_jax.config.run import validate_config
from manu_jax.place import Sizes
from manu_jax.planning import meshes, page
from manu_jax.planning.chips import target_of
from manu_jax.planning.items import planned
from manu_jax.planning.plan import row_of
from manu_jax.planning.world import world_of
from manu_jax.run import exit_status
from manu_jax.types import WorkKind


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _run(options))


def auto_config(model: str, attackers: str = "adapters") -> RunConfig:
    """Return the config whose steps are planned: no method trains all weights."""
    lora = {"lora": {"rank": 16, "dropout": 0}} if attackers == "adapters" else {}
    folder = str(config_of(model).model.path)
    values = {
        "model": {"path": folder, "dtype": "bfloat16"},
        "mesh": "auto",
        "method": "paper",
        "compare": ["gradient", {"preset": "learned", "remat": "all"}],
        "score_batch": 32,
        "evaluate": {"batch_size": 32, "new_tokens": 50},
        "audit": {"level": "full", **lora},
    }
    return validate_config(values, "plan_auto")


def _run(options: argparse.Namespace) -> None:
    target, config = target_of(options.target), auto_config(options.model, options.attackers)
    choices = meshes.chosen(config, target)
    for kind, choice in choices.items():
        print(f"{kind}: {choice.text()}", flush=True)
    sizes: dict[WorkKind, Sizes] = {kind: choice.sizes for kind, choice in choices.items()}
    world = world_of(config, target, ASSUMED, sizes=sizes)
    for item in planned(world):
        if options.steps and options.steps in item.name:
            row = row_of(item, world.at(item.kind), keep=Path(options.cache))
            mesh = "data={}, fsdp={}, tensor={}".format(*row.mesh)
            print(f"{mesh}: {page.line(row)}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=sorted(MODELS.values()), required=True)
    parser.add_argument("--target", default="tpu=v5e:4x4", help="as of --plan")
    parser.add_argument("--cache", required=True, metavar="DIR", help="where results are kept")
    parser.add_argument("--steps", default="image form", help="a part of the steps' names")
    parser.add_argument("--attackers", choices=("adapters", "all"), default="adapters")
    return parser


if __name__ == "__main__":
    sys.exit(main())
