"""Time and memory of scoring, against a bare forward pass and against PyTorch hooks, in one run.

    python benchmarks/score.py [--samples 4] [--repeats 5] [--text-tokens 48] [--small]

A LLaVA of about 100 M random parameters (576 image tokens, MLLMU-like texts) is written as a
Hugging Face folder and loaded by both frameworks, in float32. Timed in turns, so that a drifting
machine hits all alike:

    torch forward   transformers' LlavaForConditionalGeneration, no gradients
    torch hooks     the same, with hooks on every down_proj and fc2 that reduce on the spot
    jax forward     the jitted forward pass, logits and all
    jax statistics  (a) streamed activation statistics: forward, reduction and summation
    jax gradient    (b) attribution by one backward pass over per-example gates, and its summation

Printed: median ms per sample, median of the paired ratios to the forward pass of the same framework
and to PyTorch's hooks, and the peak memory of a process that does only that, at one batch and at
four. transformers also runs the last vision layer, whose output nothing uses; manu_jax does not.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np

PROBE_THRESHOLD = 0.1
PARTS = ("torch forward", "torch hooks", "jax forward", "jax statistics", "jax gradient")
FORWARD_OF = {name: f"{name.split()[0]} forward" for name in PARTS}


def main() -> None:
    options = parse()
    if options.part:
        measure_memory(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        models.write_model(Path(folder), size_of(options))
        inputs = make_inputs(options)
        steps = {name: build(name, Path(folder), inputs) for name in PARTS}
        times = {name: [] for name in PARTS}
        for step in steps.values():  # compile, and fill caches
            step()
        for _ in range(options.repeats):
            for name, step in steps.items():
                begin = time.perf_counter()
                step()
                times[name].append((time.perf_counter() - begin) / options.samples)
        memory = {}
        if not options.no_memory:
            memory = {name: peak_memory(name, options, Path(folder)) for name in PARTS}
    print_table(times, memory, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4, help="samples a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--text-tokens", type=int, default=48)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    return parser.parse_args()


def size_of(options: argparse.Namespace) -> str:
    return "small" if options.small else "large"


def make_inputs(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return one batch: each sample one image, then random text whose last eight tokens answer."""
    sizes = models.SIZES[size_of(options)]
    vision, text = sizes["vision"], sizes["text"]
    rng = np.random.default_rng(0)
    num_patches = (vision["image"] // vision["patch"]) ** 2
    B, T = options.samples, num_patches + options.text_tokens
    token_ids_BT = rng.integers(0, text["vocabulary"] - 1, (B, T), dtype=np.int32)
    token_ids_BT[:, 4 : 4 + num_patches] = text["vocabulary"] - 1
    feature_index_BT = np.full((B, T), -1, np.int32)
    feature_index_BT[:, 4 : 4 + num_patches] = np.arange(num_patches)
    loss_weights_BT = np.zeros((B, T), np.float32)
    loss_weights_BT[:, -8:] = 1
    answer_index_BA = np.tile(np.arange(T - 9, T - 1, dtype=np.int32), (B, 1))
    patches_BIPC = rng.standard_normal((B, 1, num_patches, vision["patch"] ** 2 * 3), np.float32)
    return dict(
        token_ids_BT=token_ids_BT,
        feature_index_BT=feature_index_BT,
        loss_weights_BT=loss_weights_BT,
        answer_index_BA=answer_index_BA,
        patches_BIPC=patches_BIPC,
    )


def build(name: str, folder: Path, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    """Return a function that does one batch of `name` and waits for the result."""
    return (build_torch if name.startswith("torch") else build_jax)(name, folder, inputs)


def build_torch(name: str, folder: Path, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    import torch

    model = models.load_torch(folder)
    arguments = dict(
        input_ids=torch.from_numpy(inputs["token_ids_BT"]).long(),
        attention_mask=torch.ones(inputs["token_ids_BT"].shape, dtype=torch.long),
        pixel_values=models.pixels_for_torch(inputs["patches_BIPC"][:, 0]),
    )
    sums: dict[str, torch.Tensor] = {}
    if name == "torch hooks":

        def hook(key):
            def reduce(_, hidden):
                z_BF = hidden[0].mean(1)
                size_BF = z_BF.abs()
                new = torch.stack(
                    [size_BF.sum(0), z_BF.sum(0), (z_BF * z_BF).sum(0)]
                    + [(size_BF > PROBE_THRESHOLD).sum(0).to(z_BF.dtype)]
                )
                sums[key] = sums[key] + new if key in sums else new

            return reduce

        for key, module in model.named_modules():
            if key.endswith(("mlp.down_proj", "mlp.fc2")):
                module.register_forward_pre_hook(hook(key))

    def step():
        with torch.inference_mode():
            return model(**arguments).logits

    return step


def build_jax(name: str, folder: Path, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    from manu_jax.config import named_method
    from manu_jax.importance import collect
    from manu_jax.types import Batch, Images

    loaded = models.load_jax(folder)
    B, T = inputs["token_ids_BT"].shape
    of_tokens = dict(inputs)
    of_images = {name: of_tokens.pop(name) for name in ("feature_index_BT", "patches_BIPC")}
    batch = Batch(
        attention_mask_BT=np.ones((B, T), bool),
        positions_BT=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        example_weights_B=np.ones(B, np.float32),
        images=Images(mask_BI=np.ones((B, 1), bool), **of_images),
        **of_tokens,
    )
    batch = jax.tree.map(jnp.asarray, batch)
    if name == "jax forward":
        forward = jax.jit(lambda model, batch: model(batch).logits_BTV)
        return lambda: forward(loaded.model, batch).block_until_ready()
    method = named_method("gradient" if name == "jax gradient" else "paper")
    capture_step = collect.capture_step_of(loaded, method, "image")
    totals = [collect.zero(loaded, batch, capture_step)]

    def add():
        totals[0] = collect.add_batch(
            totals[0], loaded.model, batch, gates=None, capture_step=capture_step
        )
        return jax.block_until_ready(totals[0])

    return add


def peak_memory(name: str, options: argparse.Namespace, folder: Path) -> dict[int, float]:
    """Return the peak memory in MiB of a process that does only `name`, by batches done."""
    found = {}
    for num_batches in (1, 4):
        command = [sys.executable, __file__, "--part", name, "--batches", str(num_batches)]
        command += ["--model", str(folder), "--samples", str(options.samples)]
        command += ["--text-tokens", str(options.text_tokens)] + ["--small"] * options.small
        found[num_batches] = float(subprocess.check_output(command, text=True).split()[-1])
    return found


def measure_memory(options: argparse.Namespace) -> None:
    step = build(options.part, Path(options.model), make_inputs(options))
    for _ in range(options.batches):
        step()
    # Not getrusage's ru_maxrss: that starts at the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def print_table(
    times: dict[str, list[float]],
    memory: dict[str, dict[int, float]],
    options: argparse.Namespace,
) -> None:
    print(
        f"{models.machine()}; {options.samples} samples a batch, median of {options.repeats} turns"
    )
    print("| | ms per sample | × its forward | × torch hooks | peak MiB, 1 batch | 4 batches |")
    print("|---|---|---|---|---|---|")
    for name in PARTS:
        own = models.ratio(times[name], times[FORWARD_OF[name]])
        hooks = models.ratio(times[name], times["torch hooks"])
        cells = [name, f"{1e3 * statistics.median(times[name]):.0f}", f"{own:.2f}", f"{hooks:.2f}"]
        cells += [f"{memory[name][n]:.0f}" if memory else "–" for n in (1, 4)]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
