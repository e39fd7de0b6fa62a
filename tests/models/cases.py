"""What the tests ask of every family: tiny models of `transformers`, and its inputs for prompts.

A family's own file, `<family>_cases.py`, says what is peculiar and ends in its one `cases`.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from PIL import Image

from manu_jax.training.tokenizer import train_tokenizer

DATA = Path(__file__).parents[1] / "data"
WORDS = "USER: ASSISTANT: Where does this person live? She lives in Oslo, Lima or Accra.\n"
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_act": "gelu_pytorch_tanh",
    "vision_use_head": False,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: changes of each section of the config, and of the image processor.

    model_type: of the whole; empty: the family's own.
    """

    model_type: str = ""
    text: dict[str, Any] = dataclasses.field(default_factory=dict)
    vision: dict[str, Any] = dataclasses.field(default_factory=dict)
    perceiver: dict[str, Any] = dataclasses.field(default_factory=dict)
    whole: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: dict[str, Any] = dataclasses.field(default_factory=dict)


USUAL = Case()


class Cases:
    """The tiny models of one family, and what `transformers` makes of PROMPTS for them."""

    MODEL_TYPE: ClassVar[str]
    CASES: ClassVar[Mapping[str, Case]]
    SIDE: ClassVar[int] = 12  # pixels
    PATCH: ClassVar[int] = 4  # pixels
    TEXT: ClassVar[Mapping[str, Any]] = {}  # beside cases.TEXT
    VISION: ClassVar[Mapping[str, Any]] = {}  # beside cases.VISION
    PROMPTS: ClassVar[Sequence[str]]
    IMAGE_COUNTS: ClassVar[Sequence[int]] = (1, 3, 0)  # of PROMPTS
    SIZES: ClassVar[Sequence[tuple[int, int]]]  # rows and columns of the images of PROMPTS
    NORMS_ADD_ONE: ClassVar[bool] = False  # the decoder's norms scale by 1 + weight
    # A bias on a key adds the same to all of a query's scores, where no rotation tells keys apart.
    WITHOUT_EFFECT: ClassVar[set[str]] = {"vision.layers.attention.k_bias_LKH"}

    def processor(self, case: Case = USUAL) -> Any:
        """Return the processor of a case's model."""
        raise NotImplementedError

    def vision(self) -> dict[str, Any]:
        """Return the sizes of every case's tower."""
        return {**VISION, "image_size": self.SIDE, "patch_size": self.PATCH}

    def whole(self, case: Case, words: Any) -> dict[str, Any]:
        """Return what the config says beside its sections of text and vision."""
        return {"image_token_index": words.convert_tokens_to_ids("<image>"), **case.whole}

    def build(self, case: Case, words: Any) -> Any:
        """Return a PyTorch model whose weights, biases and norms are all random."""
        config = transformers.CONFIG_MAPPING[case.model_type or self.MODEL_TYPE](
            text_config={**TEXT, "vocab_size": len(words), **self.TEXT, **case.text},
            vision_config={**self.vision(), **self.VISION, **case.vision},
            **self.whole(case, words),
        )
        model = transformers.AutoModelForImageTextToText.from_config(config).eval()
        self.randomise(model)
        return model

    def randomise(self, model: Any) -> None:
        """Give every parameter random numbers; norms scale by about 1."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                is_scale = "norm" in name and name.endswith("weight")
                parameter.copy_(1 + 0.2 * noise if is_scale else 0.2 * noise)
                if self.NORMS_ADD_ONE and is_scale and "vision_tower" not in name:
                    parameter -= 1

    def write_case(self, name: str, folder: Path) -> Any:
        """Write a case's model and processor to `folder`; return the PyTorch model."""
        processor = self.processor(self.CASES[name])
        processor.save_pretrained(folder)
        model = self.build(self.CASES[name], processor.tokenizer)
        model.save_pretrained(folder)
        return model

    def image_lists(self) -> list[list[Image.Image]]:
        """Return the images of PROMPTS."""
        images = iter(images_of(self.SIZES))
        return [list(itertools.islice(images, count)) for count in self.IMAGE_COUNTS]

    def text_prompts(self) -> list[str]:
        """Return prompts without images: those of PROMPTS."""
        pairs = zip(self.PROMPTS, self.IMAGE_COUNTS, strict=True)
        return [prompt for prompt, count in pairs if not count]

    def torch_processor(self, folder: Path) -> Any:
        """Return the processor of `transformers` that makes prompts of a folder's parts."""
        return transformers.AutoProcessor.from_pretrained(folder, backend="pil")

    def torch_inputs(
        self,
        folder: Path,
        side: str,
        prompts: Sequence[str] | None = None,
        images: Sequence[Sequence[Image.Image]] | None = None,
    ) -> Any:
        """Return what `transformers`' own processor makes of prompts, as PyTorch tensors."""
        processor = self.torch_processor(folder)
        processor.tokenizer.padding_side = side
        given = {"images": images} if images and any(images) else {}
        prompts = list(self.PROMPTS if prompts is None else prompts)
        return processor(text=prompts, return_tensors="pt", padding=True, **given)

    def export_name(self, name: str) -> str:
        """Return a tensor's name in what we save, given its name in a file of PyTorch's."""
        return name.replace("vision_tower.", "vision_tower.vision_model.")

    def tower_of(self, name: str) -> str | None:
        """Return the tower whose neurons enter the PyTorch module of that name, if any do."""
        if name.endswith("mlp.fc2"):
            return "vision"
        return "text" if name.endswith("mlp.down_proj") else None

    def counts_of_rows(self, inputs: Any) -> Sequence[int]:
        """Return how many vision inputs each of PROMPTS has."""
        del inputs
        return self.IMAGE_COUNTS

    def vision_inputs_of_rows(self, inputs: Any) -> list[list[int]]:
        """Return each prompt's vision inputs by number, in the order in which the tower runs."""
        numbers = itertools.count()
        return [list(itertools.islice(numbers, int(n))) for n in self.counts_of_rows(inputs)]

    def tokens_of_vision_inputs(self, inputs: Any, tower: str, count: int) -> np.ndarray:
        """Return which of `count` tokens of a tower are no padding. [vision inputs, count] bool."""
        del tower
        return np.ones((sum(self.counts_of_rows(inputs)), count), bool)

    def gated_tokens_of_vision_inputs(self, inputs: Any, tower: str, count: int) -> np.ndarray:
        """Return the same of the tokens by which gates change the outputs: none of padding."""
        return self.tokens_of_vision_inputs(inputs, tower, count)


def tokenizer() -> Any:
    """Return a tokenizer that knows the words of the prompts."""
    return train_tokenizer([WORDS] * 4, 300)


def images_of(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[Image.Image]:
    """Return random images of so many rows and columns of pixels."""
    generator = np.random.default_rng(seed)
    return [
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes
    ]


def random_images(count: int, seed: int = 0) -> list[Image.Image]:
    """Return random images that are nearly square."""
    return images_of([(15, 13 + number) for number in range(count)], seed)


def real(name: str) -> dict[str, Any]:
    """Return the `config.json` of a released model."""
    return json.loads((DATA / f"{name}.json").read_text())
