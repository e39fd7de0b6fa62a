"""The processor of a Hugging Face folder: loaded by `transformers`, checked against the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manu_jax.folder import ForeignErrors
from manu_jax.models.hf import files
from manu_jax.types import NO_IMAGE_TOKEN, ManuError

IDS_TRIED = 1000  # of the tokens without a row of the embedding


def load_processor(
    path: Path, load: Callable[[Path], Any], *, image_token: int, vocabulary: int
) -> Any:
    """Return the processor that `load` makes of a folder.

    image_token, vocabulary (rows of the embedding): as config.json has them; NO_IMAGE_TOKEN: only a
    tokenizer is needed. Raises ManuError where
    a file is missing, damaged or not understood, and where the tokenizer is another model's.
    """
    _check_json(path)
    of_images = ", preprocessor_config.json (or processor_config.json)"
    of_images = "" if image_token == NO_IMAGE_TOKEN else of_images
    with ForeignErrors(
        str(path),
        "its tokenizer or image processor can't be loaded",
        f"The folder needs tokenizer.json, tokenizer_config.json{of_images} as they came with the "
        "model; if they are whole, they may need a newer version of transformers and tokenizers.",
    ):
        processor = load(path)
    if image_token == NO_IMAGE_TOKEN:
        _check_vocabulary(path, processor.tokenizer, image_token, vocabulary)
        return processor
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ManuError(
            f"{path}: it has a {type(processor).__name__} alone; the folder needs the files of "
            "both the tokenizer and the image processor."
        )
    # Gemma 3's processor calls the placeholder of an image in a text its image token.
    name = getattr(processor.tokenizer, "image_token", None)
    name = name or getattr(processor, "image_token", "<image>")
    token = processor.tokenizer.convert_tokens_to_ids(name)
    if token != image_token:
        raise ManuError(
            f"{path}: the tokenizer's image token is {token}, config.json says {image_token}. Use "
            "the tokenizer that came with the model."
        )
    _check_vocabulary(path, processor.tokenizer, image_token, vocabulary)
    return processor


def _check_json(path: Path) -> None:
    """Raise ManuError for a file of tokenizer or processor that is no JSON mapping, by its name."""
    for name in files.small_files(path):
        if not name.endswith(".json"):
            continue
        try:
            values = json.loads((path / name).read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise ManuError(
                f"{path / name}: can't be read as JSON ({error}). Get it anew."
            ) from None
        if not isinstance(values, dict):
            raise ManuError(f"{path / name}: expected a mapping, got {values!r:.60}. Get it anew.")


def _check_vocabulary(path: Path, tokenizer: Any, image_token: int, vocabulary: int) -> None:
    """Raise ManuError where a text can have a token for which the embedding has no row.

    The image token needs none: features take its place. Padding is seen by nobody, and `Loaded`
    pads with a token that has one.
    """
    names = {id: name for name, id in tokenizer.get_vocab().items() if id >= vocabulary}
    for token in (image_token, tokenizer.pad_token_id):
        names.pop(token, None)
    past = sorted(names)[:IDS_TRIED]
    if not past:
        return
    texts = [tokenizer.decode([id]) for id in past] + [names[id] for id in past]
    reached = {id for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for id in ids}
    reachable = sorted(reached & names.keys())
    if reachable:
        shown = ", ".join(f"{names[id]!r} = {id}" for id in reachable[:5])
        raise ManuError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens, its embedding {vocabulary} rows, "
            f"none for {shown}. Call `resize_token_embeddings({max(names) + 1})` on the model and "
            "save it again, or use the tokenizer that came with the model."
        )
