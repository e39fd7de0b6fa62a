"""How many samples a second a host makes ready, beside what a step takes.

    python benchmarks/inputs.py --samples 48 --workers 0,1,2

LLaVA-1.5's own processing at 336 pixels, without its weights: a JPEG of 1024 × 768 pixels is
decoded, made into patches, its question and answer are tokenised with 576 image tokens, and samples
are put into batches. Each stage's processor time is taken, in turns. Then whole batches are taken
as a step does (`Batches`), with as many worker processes as `--workers` says, once they have
started.

What a step takes is arithmetic: chips × FLOP/s × share ÷ (2 × parameters × tokens), for statistics
of LLaVA-1.5-7B, whose plan is in docs/devices.md.
"""

import argparse
import dataclasses
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

QUESTION = "What does this person do for a living, and where was this person born?"
ANSWER = "This person works as a marine biologist and was born in the city of Valparaíso."
VOCABULARY = 4096
PARAMETERS, TOKENS = 7.06e9, 768
CHIPS = {"v5e": 197e12, "v4": 275e12, "v6e": 918e12}  # bfloat16 FLOP/s of a chip
HOSTS = {"v5e": 4, "v4": 4, "v6e": 4}  # chips of a host of a pod


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", default="0,1,2", metavar="N,N,…")
    options = parser.parse_args(arguments)
    loaded = llava()
    files = [jpeg(seed) for seed in range(options.samples)]
    print(
        f"{os.cpu_count()} cores; {options.samples} JPEGs of 1024 × 768 pixels, 336 for the model"
    )
    print("\n| stage | processor ms a sample | samples a second and core |\n|---|---:|---:|")
    for name, seconds in stages(loaded, files, options.turns).items():
        print(f"| {name} | {1e3 * seconds:.2f} | {1 / seconds:.0f} |")
    print("\n| workers | samples a second | ms of the run's own processor |\n|---|---:|---:|")
    for number in map(int, options.workers.split(",")):
        seconds, own = batches(loaded, files, number, options)
        name = number or "none: in the process itself"
        print(f"| {name} | {1 / seconds:.0f} | {1e3 * own:.2f} |")
    print("\n| statistics of 7B, 768 tokens | samples a second and host, roofline | at MFU 0.55 |")
    print("|---|---:|---:|")
    for chip, flops in CHIPS.items():
        need = HOSTS[chip] * flops / (2 * PARAMETERS * TOKENS)
        print(f"| a host of {HOSTS[chip]} {chip} chips | {need:.0f} | {0.55 * need:.0f} |")


def llava() -> Any:
    """Return a LLaVA-1.5 of 336 pixels with its processor, and shapes in place of weights."""
    from manu_jax.config import ModelSection, TextSize, VisionSize
    from manu_jax.models.families import llava
    from manu_jax.models.loaded import Loaded
    from manu_jax.training.tokenizer import train_tokenizer

    vision = VisionSize(
        image_size=336, patch_size=14, width=64, num_layers=3, num_heads=4, num_neurons=128
    )
    text = TextSize(
        width=64, num_layers=2, num_heads=4, num_key_heads=4, num_neurons=128, context=4096,
        vocabulary=VOCABULARY,
    )  # fmt: skip
    section = ModelSection(vision=vision, text=text)
    tokenizer = train_tokenizer([QUESTION, ANSWER] * 3, VOCABULARY)
    values = llava.tiny_config(section, tokenizer)
    config = llava.FAMILY.config_from_hf(values, "benchmark")
    processor = llava.FAMILY.tiny_processor(section, tokenizer)
    return Loaded(llava.FAMILY.abstract(config), processor, llava.FAMILY, config, values)


def jpeg(seed: int) -> bytes:
    """Return a JPEG of 1024 × 768 pixels with coarse and fine structure, as photographs have."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((768, 1024, 3), np.float32)
    for size, strength in ((8, 90), (64, 40), (384, 12)):
        coarse = random.normal(size=(size * 3 // 4, size, 3)).astype(np.float32)
        for channel in range(3):
            plane = Image.fromarray(coarse[..., channel]).resize(
                (1024, 768), Image.Resampling.BICUBIC
            )
            pixels[..., channel] += strength * np.asarray(plane)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def samples_of(images: Sequence[Any], loaded: Any) -> list[Any]:
    """Return a sample for each image, each of a text of its own."""
    from manu_jax.types import Sample

    token = loaded.processor.image_token
    asked = f"USER: {token}\n{QUESTION} ASSISTANT: "
    return [
        Sample(((asked, False), (f"{ANSWER} {number}", True)), (image,))
        for number, image in enumerate(images)
    ]


def fresh(loaded: Any) -> Any:
    """Return the same with nothing encoded yet."""
    from manu_jax.models.inputs.caches import Caches

    return dataclasses.replace(loaded, caches=Caches())


def stages(loaded: Any, files: Sequence[bytes], turns: int) -> dict[str, float]:
    """Return the processor seconds a sample of each stage, the medians of turns."""
    from manu_jax.data.images import decode
    from manu_jax.fingerprint import image_digest
    from manu_jax.models.inputs.caches import Caches

    images = [decode(file) for file in files]
    samples = samples_of(images, loaded)
    known, digests = fresh(loaded), {}
    encoded = [known.encode(sample, digests=digests) for sample in samples]
    family, processor, config = loaded.family, loaded.processor, loaded.config

    def pixels() -> None:
        for image in images:
            family.vision_inputs(image, processor, config)

    def tokenise() -> None:
        own = dataclasses.replace(known, caches=Caches(known.caches.vision))
        for one in samples:
            own.encode(one, digests=digests)

    def whole() -> None:
        own = fresh(loaded)
        own.collate([own.encode(sample) for sample in samples_of(map(decode, files), loaded)])

    parts: dict[str, Callable[[], Any]] = {
        "decoding the JPEG": lambda: [decode(file) for file in files],
        "knowing it by its content": lambda: [image_digest(image) for image in images],
        "pixels: resize, normalise, patches": pixels,
        "tokenising, with the image known": tokenise,
        "finding a sample again": lambda: [known.encode(one, digests=digests) for one in samples],
        "putting into a batch": lambda: known.collate(encoded),
        "all of it": whole,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(turns):
        for name, part in parts.items():
            begun = time.process_time()
            part()
            times[name].append((time.process_time() - begun) / len(files))
    return {name: statistics.median(found) for name, found in times.items()}


def batches(
    loaded: Any, files: Sequence[bytes], number: int, options: argparse.Namespace
) -> tuple[float, float]:
    """Return the seconds a sample, and those of this process's processor, of encoding and batches.

    The images are decoded and the workers have started.
    """
    from manu_jax.data.batches import Batches, encode_all
    from manu_jax.data.images import decode
    from manu_jax.models.inputs import workers

    times, own_times = [], []
    with workers.used(number):
        for turn in range(options.turns + 1):
            own = fresh(loaded)
            images = [decode(file) for file in files]
            begun, own_begun = time.perf_counter(), time.process_time()
            for _ in Batches(own, encode_all(own, samples_of(images, own)), options.batch):
                pass
            if turn:  # the first one waits for the workers to start
                times.append((time.perf_counter() - begun) / len(files))
                own_times.append((time.process_time() - own_begun) / len(files))
    return statistics.median(times), statistics.median(own_times)


if __name__ == "__main__":
    main()
