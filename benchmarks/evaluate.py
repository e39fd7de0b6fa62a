"""Greedy answers a second, against transformers' generate, in one run.

    python benchmarks/evaluate.py [--models demo large] [--batch-sizes 1 8 32] [--turns 3] [--quick]
    python benchmarks/evaluate.py --mixed 256 [--models demo] [--batch-sizes 32]

LLaVAs of random float32 parameters, as large as the demo's and of about 100 M, are written as a
Hugging Face folder and loaded by both frameworks. Both are given the same prompts in batches of the
same size and left padding, and write the same number of tokens: nothing ends an answer early.
Asked are texts alone, texts that have an image each, and twenty questions on each image.

Timed in turns, so that a drifting machine hits all alike: answers of one token ("prompt"), then of
all. Printed: items a second, how many times as many as transformers (the median of the paired
ratios; of the prompt and of the tokens after it too), and the share of items whose tokens are all
the same. Images and texts are numbers before the clock starts.

--mixed: so many texts of 20 to 200 tokens, whose answers end after 1 to 50, since the tokens that
end them are chosen so. Timed in turns are answers where waiting prompts take the rows of those that
have ended, whole batches of our own, each of which ends with its longest answer, and transformers'
`generate`.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import models
import numpy as np
from PIL import Image

from manu_jax.data.batches import batches_of
from manu_jax.evaluation import refilling
from manu_jax.evaluation.generate import greedy_tokens
from manu_jax.models.loaded import Loaded
from manu_jax.types import Encoded, Sample, VisionInput

QUESTIONS_OF_IMAGE = {"text": 0, "image": 1, "image, 20 questions": 20}
TEXT_TOKENS = (24, 56)  # of a prompt, without its image
MIXED_PROMPTS, MIXED_ANSWERS = (20, 201), 50  # tokens of prompts, from below; of an answer, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered(Loaded):
    """A model whose samples are numbers already; nothing ends an answer."""

    encoded: dict[str, Encoded] = dataclasses.field(default_factory=dict)
    eos_ids: tuple[int, ...] = ()
    padding_id: int = 0

    def tokenise_ahead(self, samples: Sequence[Sample]) -> None:
        pass

    def encode(self, sample: Sample, *, digests: dict[int, bytes] | None = None) -> Encoded:
        return self.encoded[sample.key]


def main() -> None:
    options = parse()
    if options.mixed:
        print_mixed([mixed(size, batch, options) for size, batch in pairs(options)], options)
        return
    rows = []
    for size in options.models:
        loaded, torch_model = both_models(size)
        for form, questions in QUESTIONS_OF_IMAGE.items():
            for batch_size in options.batch_sizes:
                # A multiple, so that no batch is partly filled.
                count = -(-max(questions, 4) // batch_size) * batch_size
                samples = make_samples(loaded, count, questions)
                row = capture(loaded, torch_model, samples, batch_size, options)
                rows.append({"model": size, "form": form, "batch": batch_size, **row})
                print(json.dumps(rows[-1]), flush=True)
    print_table(rows, options)


def both_models(size: str) -> tuple[Numbered, Any]:
    """Return one model in both frameworks."""
    with tempfile.TemporaryDirectory() as folder:
        models.write_model(Path(folder), size)
        return models.load_jax(Path(folder), Numbered), models.load_torch(Path(folder))


def pairs(options: argparse.Namespace) -> list[tuple[str, int]]:
    return [(size, batch) for size in options.models for batch in options.batch_sizes]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=models.SIZES, default=["demo", "large"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--mixed", type=int, default=0, help="prompts of mixed lengths")
    options = parser.parse_args()
    if options.quick and options.mixed:
        options.models, options.batch_sizes, options.mixed, options.turns = ["small"], [4], 24, 1
    elif options.quick:
        options.models, options.batch_sizes = ["small"], [8]
        options.turns, options.new_tokens = 1, 4
    return options


def make_samples(
    loaded: Numbered, count: int, questions: int, tokens: tuple[int, int] = TEXT_TOKENS
) -> list[Sample]:
    """Return random prompts, `questions` on each image or 0; their numbers are in `loaded`.

    tokens: of a text, from the first to below the second.
    """
    rng = np.random.default_rng(0)
    config = loaded.config
    patches = config.tokens_per_image
    samples = []
    for number in range(count):
        if questions and number % questions == 0:
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            patches_PC = rng.standard_normal((patches, config.patch_values), np.float32)
            vision_input = VisionInput(patches_PC, None, patches)
        words = rng.integers(0, config.image_token, rng.integers(*tokens), dtype=np.int32)
        ids = words
        if questions:
            ids = np.concatenate([words[:4], np.full(patches, config.image_token), words[4:]])
        is_image_T = ids == config.image_token
        samples.append(Sample((("", False),), (image,) if questions else (), str(number)))
        loaded.encoded[str(number)] = Encoded(
            ids.astype(np.int32),
            np.zeros(len(ids), np.float32),
            np.where(is_image_T, np.cumsum(is_image_T) - 1, -1).astype(np.int32),
            (vision_input,) if questions else (),
        )
    return samples


def capture(
    loaded: Numbered,
    torch_model: Any,
    samples: list[Sample],
    batch_size: int,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Return items a second of both, the ratios, and the share of items with equal tokens."""
    encoded = [loaded.encode(sample) for sample in samples]
    steps: dict[tuple[str, str], Callable[[], list[np.ndarray]]] = {}
    for what, new_tokens in (("prompt", 1), ("all", options.new_tokens)):
        steps["ours", what] = lambda n=new_tokens: greedy_tokens(
            loaded, samples, new_tokens=n, batch_size=batch_size
        )
        steps["theirs", what] = lambda n=new_tokens: generated(
            torch_model, loaded, encoded, batch_size, n
        )
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    answers = {key: step() for key, step in steps.items()}  # compile, and fill caches
    for _ in range(options.turns):
        for key, step in steps.items():
            begin = time.perf_counter()
            step()
            times[key].append(time.perf_counter() - begin)
    for who in ("ours", "theirs"):
        pairs = zip(times[who, "all"], times[who, "prompt"], strict=True)
        times[who, "tokens"] = [whole - prompt for whole, prompt in pairs]
    pairs = zip(answers["ours", "all"], answers["theirs", "all"], strict=True)
    return {
        "ours": len(samples) / statistics.median(times["ours", "all"]),
        "theirs": len(samples) / statistics.median(times["theirs", "all"]),
        **{
            f"times, {what}": models.ratio(times["theirs", what], times["ours", what])
            for what in ("all", "prompt", "tokens")
        },
        "equal": float(np.mean([np.array_equal(one, other) for one, other in pairs])),
    }


def mixed(size: str, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return how prompts and answers of mixed lengths go, with both frameworks."""
    loaded, torch_model = both_models(size)
    samples = make_samples(loaded, options.mixed, 0, MIXED_PROMPTS)
    encoded = [loaded.encode(sample) for sample in samples]
    settings = {"new_tokens": MIXED_ANSWERS, "batch_size": batch_size}

    def whole_batches() -> list[np.ndarray]:
        with mock.patch.object(refilling, "SHORT", MIXED_ANSWERS):
            return greedy_tokens(loaded, samples, **settings)

    # In whole batches, which have fewer programs to compile.
    loaded = dataclasses.replace(loaded, eos_ids=spread_ends(np.stack(whole_batches())))
    steps = {
        "refilled": lambda: greedy_tokens(loaded, samples, **settings),
        "whole": whole_batches,
        "theirs": lambda: generated(torch_model, loaded, encoded, batch_size, MIXED_ANSWERS),
    }
    answers = {}
    for who, step in steps.items():  # compile, and fill caches: most of the time on few prompts
        begin = time.perf_counter()
        answers[who] = step()
        print(f"{who}: first in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(options.turns):
        for who, step in steps.items():
            begin = time.perf_counter()
            step()
            times[who].append(time.perf_counter() - begin)
    row: dict[str, Any] = {"model": size, "batch": batch_size}
    row["tokens"] = float(np.mean([len(answer) for answer in answers["refilled"]]))
    for who in ("whole", "theirs"):
        row[f"times, {who}"] = models.ratio(times[who], times["refilled"])
        equal = zip(answers["refilled"], answers[who], strict=True)
        row[f"equal, {who}"] = float(np.mean([np.array_equal(one, other) for one, other in equal]))
    print(json.dumps({**row, "seconds": times}), flush=True)
    return row


def spread_ends(tokens_NA: np.ndarray) -> tuple[int, ...]:
    """Return tokens that, if they end answers, make these of lengths from 0 to A as even as can be.

    Found greedily: the token that brings the sorted lengths nearest, until none does.
    """
    N, A = tokens_NA.shape
    wish_N = np.linspace(0, A, N)
    lengths_N, ends, error = np.full(N, A), [], np.inf
    first = {
        int(token): np.where((at := tokens_NA == token).any(axis=1), at.argmax(axis=1), A)
        for token in np.unique(tokens_NA)
    }
    while True:
        errors = {
            token: np.abs(np.sort(np.minimum(lengths_N, first_N)) - wish_N).sum()
            for token, first_N in first.items()
        }
        best = min(errors, key=errors.__getitem__)
        if errors[best] >= error:
            return tuple(ends)
        error, lengths_N = errors[best], np.minimum(lengths_N, first[best])
        ends.append(best)


def generated(
    model: Any, loaded: Numbered, encoded: list[Encoded], batch_size: int, new_tokens: int
) -> list[np.ndarray]:
    """Return the tokens that transformers' `generate` writes, in the batches that we make."""
    import torch

    batches = batches_of(loaded, encoded, batch_size, padding_side="left")
    model.generation_config.eos_token_id = list(loaded.eos_ids) or None
    answers = [np.zeros(0, np.int32)] * len(encoded)
    for indices, batch in batches:
        count = len(indices)  # without the rows that fill up our batch
        inputs = {
            "input_ids": torch.from_numpy(batch.token_ids_BT[:count]).long(),
            "attention_mask": torch.from_numpy(batch.attention_mask_BT[:count]).long(),
        }
        if batch.images is not None:
            inputs["pixel_values"] = models.pixels_for_torch(batch.images.patches_BIPC[:count, 0])
        with torch.inference_mode():
            ids = model.generate(
                **inputs, do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
            )
        for index, row in zip(indices, ids[:, batch.token_ids_BT.shape[1] :].numpy(), strict=True):
            ends = np.flatnonzero(np.isin(row, loaded.eos_ids))
            answers[index] = row[: ends[0]] if len(ends) else row
    return answers


def print_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"{models.machine()}; {options.new_tokens} new tokens, median of {options.turns} turns")
    names = ["model", "prompts", "batch", "ours, items/s", "transformers", "×", "prompt ×"]
    names += ["tokens ×", "equal"]
    print("| " + " | ".join(names) + " |")
    print("|---" * len(names) + "|")
    for row in rows:
        cells = [row["model"], row["form"], str(row["batch"])]
        cells += [f"{row[who]:.2f}" for who in ("ours", "theirs")]
        cells += [f"{row[f'times, {what}']:.2f}" for what in ("all", "prompt", "tokens")]
        print("| " + " | ".join([*cells, f"{100 * row['equal']:.0f} %"]) + " |")


def print_mixed(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"{models.machine()}; {options.mixed} prompts, median of {options.turns} turns")
    print("| model | batch | tokens an answer | × whole batches | × transformers | equal | equal |")
    print("|---" * 7 + "|")
    for row in rows:
        cells = [row["model"], str(row["batch"]), f"{row['tokens']:.1f}"]
        cells += [f"{row[f'times, {who}']:.2f}" for who in ("whole", "theirs")]
        cells += [f"{100 * row[f'equal, {who}']:.0f} %" for who in ("whole", "theirs")]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
