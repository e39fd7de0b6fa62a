"""Compare attention by kernel with the reference where it runs: `python tools/check_gpu.py`.

Every case is attention of a model's shape, with the masks and padding of its batches: values and
gradients in the case's dtype, by `attend` and by the reference, against the reference in float32.
The last is a decoder's logits after a prompt and after further tokens from the cache. The printed
errors are root mean squares over real tokens, in those of the float32 values. Status 1 where
`attend` is more than twice as far off as the reference in the same dtype, or where anything is not
finite, padding included. On a machine without an accelerator `attend` is the reference. --small:
tiny shapes.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.models.families.llama import Llama, LlamaConfig
from manu_jax.models.nn import attention
from manu_jax.models.nn.decoder_config import DecoderConfig
from manu_jax.models.nn.kernels import Pattern
from manu_jax.models.nn.rope import Rope
from manu_jax.types import Batch

REPEATS = 5
FURTHER = 8  # tokens that the decoder is given one by one
ALLOWED, LEAST = 2.0, 1e-6  # times the reference's error; errors that count as none
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Case:
    """B rows of T tokens, N query heads and K key heads of size H. mask: a function below."""

    name: str
    sizes: tuple[int, int, int, int, int]
    mask: "Callable[[Case], Masked] | None"
    dtype: Any = jnp.bfloat16
    cap: float | None = None


@dataclasses.dataclass(frozen=True)
class Masked:
    """mask_BTS bool, None: everywhere; is_real_BT bool: no padding; pattern: of the mask."""

    mask_BTS: np.ndarray | None
    is_real_BT: np.ndarray
    pattern: Pattern | None


def left_padded(case: Case) -> Masked:
    """Causal; the first row has no padding, the others have some on the left."""
    return causal(case, lambda row, T: np.arange(T) >= row * T // 5)


def right_padded(case: Case) -> Masked:
    """Causal; the first row has no padding, the others have some on the right."""
    return causal(case, lambda row, T: np.arange(T) < T - row * T // 5)


def causal(case: Case, is_real: Callable[[int, int], np.ndarray]) -> Masked:
    B, T, *_ = case.sizes
    is_real_BT = np.stack([is_real(row, T) for row in range(B)])
    mask_BTS = np.tri(T, dtype=bool)[None] & is_real_BT[:, None]
    return Masked(mask_BTS, is_real_BT, Pattern(jnp.asarray(is_real_BT), is_causal=True))


def windowed(case: Case) -> Masked:
    """As `right_padded`, and only a third of the tokens are seen."""
    whole, T = right_padded(case), case.sizes[1]
    assert whole.mask_BTS is not None and whole.pattern is not None
    distance_TT = np.arange(T)[:, None] - np.arange(T)[None]
    pattern = dataclasses.replace(whole.pattern, window=jnp.asarray(T // 3), windows=(T // 3,))
    return Masked(whole.mask_BTS & (distance_TT < T // 3)[None], whole.is_real_BT, pattern)


def both_ways(case: Case) -> Masked:
    """As `right_padded`, and a block of tokens attends to itself in both directions."""
    whole, T = right_padded(case), case.sizes[1]
    assert whole.mask_BTS is not None
    block_T = (np.arange(T) >= T // 8) & (np.arange(T) < T // 2)
    joint_TT = block_T[:, None] & block_T[None]
    return Masked(
        whole.mask_BTS | (joint_TT[None] & whole.is_real_BT[:, None]), whole.is_real_BT, None
    )


def in_blocks(case: Case) -> Masked:
    """Blocks of 64 tokens attend to themselves alone; the last tokens are padding."""
    B, T, *_ = case.sizes
    is_real_BT = np.broadcast_to(np.arange(T) < T - T // 10, (B, T))
    block_BT = np.where(is_real_BT, np.arange(T) // 64, -1)
    mask_BTS = (block_BT[:, :, None] == block_BT[:, None]) & is_real_BT[:, None]
    return Masked(mask_BTS, is_real_BT, Pattern(jnp.asarray(block_BT)))


CASES = (
    Case("LLaVA-1.5, scoring", (4, 768, 32, 32, 128), right_padded),
    Case("LLaVA-1.5, prompt", (4, 768, 32, 32, 128), left_padded),
    Case("LLaVA-NeXT, 2,881 tokens", (1, 2881, 32, 32, 128), right_padded),
    Case("Qwen2.5-VL", (4, 768, 28, 4, 128), right_padded),
    Case("CLIP, odd, no mask", (8, 577, 16, 16, 64), None),
    Case("Qwen2.5-VL vision, windows", (4, 1024, 16, 16, 80), in_blocks),
    Case("Gemma 3, window", (2, 1024, 16, 8, 256), windowed),
    Case("Gemma 3, images both ways", (2, 1024, 16, 8, 256), both_ways),
    Case("float16", (2, 768, 32, 32, 128), right_padded, jnp.float16),
    Case("Gemma 2, soft cap", (2, 768, 16, 8, 256), right_padded, cap=50.0),
    Case("float32", (2, 768, 32, 32, 128), right_padded, jnp.float32),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a rehearsal")
    small = parser.parse_args().small
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    print(f"{'case':28} {'form':9} {'value':>17} {'gradient':>17} {'ms':>13} {'MiB':>13}")
    print(f"{'':38} {'attend/reference':>17} {'attend/reference':>17}")
    faults = []
    for case in CASES:
        if small:
            B, T, N, K, H = case.sizes
            case = dataclasses.replace(case, sizes=(2, 192 + T % 8, N // K * 2, 2, H // 8))
        faults += compared(case)
    faults += compared_decoder(small)
    print("\n".join(f"FAULT {fault}" for fault in faults) or "all agree")
    return 1 if faults else 0


def compared(case: Case) -> list[str]:
    """Print a case's line; return what is wrong."""
    B, T, N, K, H = case.sizes
    masked = Masked(None, np.ones((B, T), bool), None) if case.mask is None else case.mask(case)
    draw = np.random.default_rng(0).standard_normal
    heads = [draw((B, T, n, H), np.float32) for n in (N, K, K, N)]
    heads[3] *= masked.is_real_BT[..., None, None]  # the gradient of what counts
    given = [jnp.asarray(x, case.dtype) for x in heads]
    mask_BTS = None if masked.mask_BTS is None else jnp.asarray(masked.mask_BTS)
    # Of the rounded numbers, so that the rounding of the inputs counts for no form.
    wide = [x.astype(jnp.float32) for x in given]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention.attend(q, k, v, mask_BTS, pattern=masked.pattern, cap=case.cap)

    def reference(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        by_head = (k.swapaxes(1, 2), v.swapaxes(1, 2))
        return attention.reference(q, *by_head, mask_BTS, cap=case.cap)

    with jax.default_matmul_precision("highest"):
        true = run(reference, wide)[0]
    found, ms, mib = run(attend, given)
    plain, plain_ms, plain_mib = run(reference, given)
    is_real = masked.is_real_BT
    errors = [error(x, y, is_real) for x, y in zip(found, true, strict=True)]
    plain_errors = [error(x, y, is_real) for x, y in zip(plain, true, strict=True)]
    form = attention.kernel_platform(given[0], pattern=masked.pattern or Pattern(), cap=case.cap)
    print(
        f"{case.name:28} {form or 'reference':9} "
        f"{errors[0]:8.1e}/{plain_errors[0]:8.1e} "
        f"{max(errors[1:]):8.1e}/{max(plain_errors[1:]):8.1e} "
        f"{ms:6.2f}/{plain_ms:6.2f} {mib:6.0f}/{plain_mib:6.0f}",
        flush=True,
    )
    names = ("values", "gradient of q", "gradient of k", "gradient of v")
    faults = [
        f"{case.name}: {name} off by {mine:.1e}, the reference by {theirs:.1e}"
        for name, mine, theirs in zip(names, errors, plain_errors, strict=True)
        if not mine <= ALLOWED * theirs + LEAST
    ]
    faults += [
        f"{case.name}: {name} not finite"
        for name, x in zip(names, found, strict=True)
        if not np.isfinite(x).all()
    ]
    return faults


def run(
    function: Callable[..., jax.Array], heads: list[jax.Array]
) -> tuple[list[np.ndarray], float, float]:
    """Return values and gradients as float32, milliseconds of both, MiB of temporaries."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array, weight: jax.Array) -> list[jax.Array]:
        value, pull = jax.vjp(function, q, k, v)
        return [value, *pull(weight)]

    program = jax.jit(both).lower(*heads).compile()
    result = jax.block_until_ready(program(*heads))
    start = time.perf_counter()
    for _ in range(REPEATS):
        jax.block_until_ready(program(*heads))
    ms = (time.perf_counter() - start) / REPEATS * 1000
    held = program.memory_analysis()
    mib = 0.0 if held is None else held.temp_size_in_bytes / MIB
    return [np.asarray(x.astype(jnp.float32)) for x in result], ms, mib


def error(found: np.ndarray, true: np.ndarray, is_real_BT: np.ndarray) -> float:
    """Return the root mean square of the difference at real tokens, in that of the true numbers."""
    found, true = found[is_real_BT].astype(np.float64), true[is_real_BT].astype(np.float64)
    return float(np.sqrt(np.square(found - true).mean() / np.square(true).mean()))


def compared_decoder(small: bool) -> list[str]:
    """Print the line of a decoder that goes on from its cache; return what is wrong."""
    T, width, layers = (160, 64, 2) if small else (512, 1024, 4)
    num_heads, head_size = width // 32, 32 if small else 128
    config = DecoderConfig(
        vocabulary=512, width=width, num_layers=layers, num_heads=num_heads, num_key_heads=2,
        head_size=head_size, num_neurons=2 * width, activation="silu", norm_epsilon=1e-5,
        context=2 * T, rope=Rope(), windows=(None,) * layers, qkv_bias=False, output_bias=False,
        mlp_bias=False, is_tied=False,
    )  # fmt: skip
    model = Llama(jax.random.key(0), LlamaConfig(config))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    random = np.random.default_rng(1)
    B = 4
    is_real_BT = np.stack([np.arange(T) >= row * T // 5 for row in range(B)])
    ids = random.integers(0, 512, (B, T + FURTHER), np.int32)
    batch = Batch(
        token_ids_BT=jnp.asarray(ids[:, :T]),
        attention_mask_BT=jnp.asarray(is_real_BT),
        positions_BT=jnp.asarray(np.maximum(np.cumsum(is_real_BT, axis=1) - 1, 0)),
        loss_weights_BT=jnp.zeros((B, T)),
        example_weights_B=jnp.ones(B),
    )
    further_BT = jnp.asarray(ids[:, T:])
    found = np.asarray(logits(half, batch, further_BT))
    attention.use("reference")
    plain = np.asarray(logits(half, batch, further_BT))
    with jax.default_matmul_precision("highest"):
        true = np.asarray(logits(wide, batch, further_BT))
    attention.use("auto")
    everywhere = np.ones(true.shape[:2], bool)
    mine, theirs = error(found, true, everywhere), error(plain, true, everywhere)
    print(f"{'a decoder with its cache':28} {'':9} {mine:8.1e}/{theirs:8.1e}")
    is_right = np.isfinite(found).all() and mine <= ALLOWED * theirs + LEAST
    return [] if is_right else [f"decoder: off by {mine:.1e}, the reference by {theirs:.1e}"]


@functools.partial(jax.jit)
def logits(model: Llama, batch: Batch, further_BT: jax.Array) -> jax.Array:
    """Return the logits after the prompt and after each further token. [B, 1 + FURTHER, V]."""
    T = batch.token_ids_BT.shape[1]
    first_BV, cache = model.prefill(batch, T + FURTHER)

    def step(cache: Any, token_B: jax.Array) -> tuple[Any, jax.Array]:
        logits_BV, cache = model.decode(token_B, cache)
        return cache, logits_BV

    _, later_TBV = jax.lax.scan(step, cache, further_BT.T)
    return jnp.concatenate([first_BV[None], later_TBV]).swapaxes(0, 1)


if __name__ == "__main__":
    sys.exit(main())
