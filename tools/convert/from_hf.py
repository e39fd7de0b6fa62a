"""Make a folder that a pod loads fast: python tools/convert/from_hf.py SRC DST [--dtype bfloat16]

SRC is a Hugging Face folder. DST gets its small files and, as `checkpoint/`, the weights as Orbax
arrays in the model's own layout, of which each process then reads its part. `manu_jax.load` takes
DST like SRC, and to_hf.py turns it back.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command import refuse_existing, run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SRC", help="a Hugging Face folder")
    parser.add_argument("target", type=Path, metavar="DST", help="the folder to make")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as in SRC)")
    options = parser.parse_args(arguments)
    return run(lambda: convert(options.source, options.target, options.dtype))


def convert(source: Path, target: Path, dtype: str | None) -> int:
    from manu_jax.folder import new_folder
    from manu_jax.models.family import load, save_checkpoint

    refuse_existing(target)
    loaded = load(source, dtype)
    with new_folder(target) as folder:
        save_checkpoint(loaded, folder)
    print(f"{target}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
