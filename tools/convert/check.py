"""Tell whether a model folder can be loaded, without loading it: python tools/convert/check.py SRC

Prints the family, the sizes, the towers with their neurons, whose names the tensors have, and what
is missing, left over or of another shape. The exit status is 0 where all fits, else 1.
"""

import argparse
import collections
import sys
from collections.abc import Sequence

from command import run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "source", metavar="SRC", help="a Hugging Face folder, or org/name on the hub"
    )
    options = parser.parse_args(arguments)
    return run(lambda: check(options.source))


def check(path: str) -> int:
    from manu_jax import stores
    from manu_jax.folder import expand_path
    from manu_jax.leaves import num_parameters
    from manu_jax.models import loaded as families
    from manu_jax.models import stored
    from manu_jax.models.hf import weights
    from manu_jax.types import ManuError

    family, config, _ = stored.read_config(families.fetch(path, with_weights=False))
    model = family.abstract(config)
    print(f"family       {family.name} (model_type {family.model_type})")
    print(f"parameters   {num_parameters(model):,}")
    for tower, (layers, neurons) in family.towers(config).items():
        print(f"{tower:12} {layers} layers × {neurons:,} = {layers * neurons:,} neurons")
    source = expand_path(path) if stores.is_store(path) else families.fetch(path)
    if stored.is_converted(source):
        raise ManuError(
            f"{source}: a folder of from_hf.py, which has no tensors by name. Check the one that "
            "it was made from."
        )
    tensors = weights.open_tensors(source)
    names, renamed = weights.with_export_names(tensors, family.names.prefixes, family.names.buffers)
    kinds = collections.Counter(tensor.dtype for tensor in tensors.values())
    files = len({tensor.file for tensor in tensors.values()})
    print(f"tensors      {len(tensors)} in {files} files, {names} names")
    print(f"dtypes       {', '.join(f'{kind}: {count}' for kind, count in sorted(kinds.items()))}")
    comparison = weights.compare(
        weights.without_repeats(renamed, family.tied(config)),
        family.weight_table(config),
        families.shapes(model),
    )
    for what, names in (
        ("missing", comparison.missing),
        ("left over", comparison.left_over),
        ("misshaped", comparison.misshaped),
    ):
        print(f"{what:12} {len(names)}")
        for name in names:
            print(f"  {name}")
    return 0 if comparison.fits else 1


if __name__ == "__main__":
    sys.exit(main())
