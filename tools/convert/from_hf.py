"""Make a folder that a pod loads fast: python tools/convert/from_hf.py SRC DST [--dtype bfloat16]

SRC is a Hugging Face folder. DST gets its small files and, as `checkpoint/`, the weights as Orbax
arrays in the model's own layout, of which each process then reads its part. `manu_jax.load` takes
DST like SRC, and to_hf.py turns it back.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from command import run_conversion


def main(arguments: Sequence[str] | None = None) -> int:
    return run_conversion(convert, arguments, description=__doc__, source="a Hugging Face folder")


def convert(source: Path, target: Path, dtype: str | None) -> None:
    from manu_jax.models.loaded import load, save_checkpoint

    save_checkpoint(load(source, dtype), target)


if __name__ == "__main__":
    sys.exit(main())
