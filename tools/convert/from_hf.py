"""Make a folder that a pod loads fast: python tools/convert/from_hf.py SRC DST --mesh fsdp=16

SRC is a Hugging Face folder or org/name on the hub, and --mesh the mesh that will read DST, as the
run's config has it. DST gets its small files and, as `checkpoint/`, the weights as Orbax arrays in
the model's own layout. A chunk of an array is what one device of the mesh holds of one layer, so
each process reads its part alone; without --mesh, and on a mesh with more parts, it reads more.
`manu_jax.load` takes DST like SRC on any mesh, and to_hf.py turns it back.
"""

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from command import run_conversion


def main(arguments: Sequence[str] | None = None) -> int:
    return run_conversion(
        convert,
        arguments,
        description=__doc__,
        source="a Hugging Face folder, or org/name on the hub",
        has_mesh=True,
    )


def convert(source: str, target: Path, dtype: str | None, sizes: Mapping[str, int]) -> None:
    import jax

    from manu_jax.models.loaded import load, save_checkpoint
    from manu_jax.parallel import make_mesh

    if not sizes:
        save_checkpoint(load(source, dtype), target)
        return
    # This host stands in for the devices of the mesh; too late where JAX has counted its devices.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", math.prod(sizes.values()))
    save_checkpoint(load(source, dtype, make_mesh(**sizes)), target)


if __name__ == "__main__":
    sys.exit(main())
