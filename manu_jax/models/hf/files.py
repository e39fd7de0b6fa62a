"""Which files of a Hugging Face folder hold the weights, and which others belong to the model.

Weights are found in the order of `transformers` (modeling_utils, _get_resolved_checkpoint_files):
`model.safetensors`, else the files that `model.safetensors.index.json` names. Whatever else lies
there is not read: older shards, an adapter, another variant, `._model.safetensors`, pickles.
"""

import fnmatch
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from manu_jax.types import ManuError

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model.safetensors.index.fp16.json
VARIANT = re.compile(
    r"model\.(?:safetensors\.index\.)?([\w-]+?)(?:-\d+-of-\d+)?\.(?:safetensors|json)"
)
# What tokenizer, processor and generation read, and the licence. Not the model card, which tells of
# other weights; not what a training left behind; not an adapter, nor weights of any kind.
KEPT = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "image_processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "tokenizer.model", "tokenizer.model.v*",
    "spiece.model", "sentencepiece*.model", "tekken.json",
    "chat_template.json", "chat_template.jinja", "additional_chat_templates/*.jinja",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
NEEDED = ("config.json", INDEX, ADAPTER, *KEPT)  # what a model needs of a repository but weights


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files that hold a folder's weights, as `transformers` chooses them.

    Raises ManuError, with the remedy, where there are none, where the index is damaged, and where a
    file that it names is not there.
    """
    if (path / ADAPTER).is_file() and any((path / name).is_file() for name in (WEIGHTS, INDEX)):
        logger.warning(
            "%s: it holds an adapter (%s) beside the weights; only the weights are read. To have "
            "both, write the model after merge_and_unload().",
            path,
            ADAPTER,
        )
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        return _shards(path)
    raise ManuError(f"{path}: no {WEIGHTS} and no {INDEX}. {_remedy(path)}")


def weight_names(path: Path) -> list[str]:
    """Return the names that a model's weights may have: of one file, and of those in the index."""
    return [WEIGHTS, *(_shard_names(path / INDEX) if (path / INDEX).is_file() else ())]


def small_files(path: Path) -> Iterator[str]:
    """Yield the names of a folder's files that belong to its model, but config.json and weights."""
    for pattern in KEPT:
        for file in sorted(path.glob(pattern)):
            if file.is_file():
                yield file.relative_to(path).as_posix()


def _shards(path: Path) -> list[Path]:
    names = _shard_names(path / INDEX)
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise ManuError(
            f"{path}: {INDEX} names {len(names)} files, of which are not there: "
            f"{', '.join(absent)}. Is the download complete?"
        )
    return [path / name for name in names]


def _shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index names, in order."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        inside = [
            not (p := PurePosixPath(name)).is_absolute() and ".." not in p.parts for name in names
        ]
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise ManuError(f"{index}: not a safetensors index ({error!r}). Get it anew.") from None
    if not names or not all(inside) or not all(name.endswith(".safetensors") for name in names):
        raise ManuError(
            f"{index}: not a safetensors index: its weight_map has to name *.safetensors files of "
            f"this folder, and names {', '.join(map(repr, names[:5])) or 'none'}. Get it anew."
        )
    return names


def _remedy(path: Path) -> str:
    """Return what to do about a folder without weights, by what it holds."""
    names = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    variants = [found for name in names if (found := VARIANT.fullmatch(name))]
    if variants:
        variant = variants[0][1]
        return (
            f"It holds the variant {variant!r} ({variants[0][0]}): rename its files without "
            f"'.{variant}', in the index as well, or write it with `from_pretrained(..., "
            f"variant={variant!r}).save_pretrained(...)`."
        )
    if any(fnmatch.fnmatch(name, "adapter_*") for name in names):
        return (
            "It holds an adapter alone: load it with peft onto its base model, and write that "
            "after merge_and_unload()."
        )
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickles:
        return (
            f"It has {', '.join(pickles)}; pickles are never read: convert them with "
            "`save_pretrained(..., safe_serialization=True)` where you trust them."
        )
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return (
            f"It has {', '.join(others)}: rename a whole model to {WEIGHTS}, or get the {INDEX} "
            "that belongs to the shards."
        )
    return "Give a folder as `save_pretrained` or the hub lays it out."
