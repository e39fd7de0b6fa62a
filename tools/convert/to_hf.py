"""Make a folder that `transformers` loads: python tools/convert/to_hf.py SRC DST [--dtype float16]

SRC is a folder made by from_hf.py (or any that `manu_jax.load` takes). DST gets safetensors under
the hub's names, config.json, and the files of tokenizer and image processor as they came.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from command import run_conversion


def main(arguments: Sequence[str] | None = None) -> int:
    return run_conversion(convert, arguments, description=__doc__, source="a folder of from_hf.py")


def convert(source: str, target: Path, dtype: str | None) -> None:
    from manu_jax.models.loaded import load, save_pretrained

    save_pretrained(load(source, dtype), target)


if __name__ == "__main__":
    sys.exit(main())
