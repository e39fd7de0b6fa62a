"""Make a folder that `transformers` loads: python tools/convert/to_hf.py SRC DST [--dtype float16]

SRC is a folder made by from_hf.py (or any that `manu_jax.load` takes). DST gets safetensors under
the hub's names, config.json, and the files of tokenizer and image processor as they came.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command import refuse_existing, run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SRC", help="a folder of from_hf.py")
    parser.add_argument("target", type=Path, metavar="DST", help="the folder to make")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as in SRC)")
    options = parser.parse_args(arguments)
    return run(lambda: convert(options.source, options.target, options.dtype))


def convert(source: Path, target: Path, dtype: str | None) -> int:
    from manu_jax.models.family import load, save_pretrained

    refuse_existing(target)
    save_pretrained(load(source, dtype), target)
    print(f"{target}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
