"""What it costs to reduce a layer's neurons over its tokens, on the device: forms beside none.

    python benchmarks/reductions.py [--turns 10] [--small]

Four layers of an MLP of LLaVA-1.5-7B's sizes run in a scan, in bfloat16 at 32 samples of 768
tokens, with no capture and with each form of `reduce_tokens` that gives its numbers. Times are
medians of the turns; below each stand the kernels that took the most of a profiled call.
"""

import argparse
import concurrent.futures
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import accelerator_jax
import jax
import jax.numpy as jnp

from manu_jax.models.nn.capture import TowerCapture, reduce_tokens
from manu_jax.types import Capture

NUM_KERNELS = 5
# Layers, examples, tokens, width, neurons
SIZES, SMALL = (4, 32, 768, 4096, 11008), (2, 4, 48, 32, 64)
Form = Callable[[jax.Array, jax.Array], Any]


def none(z_BTF: jax.Array, weights_BT: jax.Array) -> None:
    return None


def present(z_BTF: jax.Array, weights_BT: jax.Array) -> jax.Array:
    rows_BI = jnp.ones((len(z_BTF), 1), jnp.float32)
    return reduce_tokens(z_BTF, TowerCapture(Capture("mean"), weights_BT, rows_BI))


def weighted_sum(z_BTF: jax.Array, weights_BT: jax.Array) -> jax.Array:
    return jnp.sum(z_BTF.astype(jnp.float32) * weights_BT[..., None], axis=1)


def sixteen_rows(z_BTF: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """As `present`, with as many equal rows of weights as a matrix unit takes at least."""
    ones_BT, share_B1 = _ones(z_BTF, weights_BT)
    B, T = ones_BT.shape
    ones_BMT = jnp.broadcast_to(ones_BT[:, None], (B, 16, T))
    sums_BMF = jnp.einsum("BMT,BTF->BMF", ones_BMT, z_BTF, preferred_element_type=jnp.float32)
    return sums_BMF[:, 0] * share_B1


def one_product(z_BTF: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """As `present`, as one matrix product of all examples: [B, B · T] × [B · T, F]."""
    ones_BT, share_B1 = _ones(z_BTF, weights_BT)
    B, T = ones_BT.shape
    blocks_BR = (jnp.eye(B, dtype=z_BTF.dtype)[:, :, None] * ones_BT).reshape(B, B * T)
    z_RF = z_BTF.reshape(B * T, -1)
    return jnp.matmul(blocks_BR, z_RF, preferred_element_type=jnp.float32) * share_B1


def _ones(z_BTF: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (weights_BT > 0).astype(z_BTF.dtype), weights_BT.max(axis=1, keepdims=True)


def apart(form: Form) -> Form:
    """Return a form that the compiler can't fuse with what makes the neurons."""

    @functools.wraps(form)
    def reduced(z_BTF: jax.Array, weights_BT: jax.Array) -> Any:
        return form(jax.lax.optimization_barrier(z_BTF), weights_BT)

    return reduced


ALONE = (present, weighted_sum, sixteen_rows, one_product)
FORMS: dict[str, Form] = {
    "none": none,
    **{form.__name__: form for form in ALONE},
    **{f"{form.__name__}, apart": apart(form) for form in ALONE},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="tiny layers, to try the script")
    options = parser.parse_args()
    sizes = SMALL if options.small else SIZES
    start, num_layers = time.monotonic(), sizes[0]
    arrays = jax.jit(functools.partial(random, sizes))(jax.random.key(0))
    with concurrent.futures.ThreadPoolExecutor(accelerator_jax.THREADS) as pool:
        programs = pool.map(lambda form: layers(form).lower(*arrays).compile(), FORMS.values())
        calls = {
            name: functools.partial(_done, program, arrays)
            for name, program in zip(FORMS, programs, strict=True)
        }
    values = {name: call()[1] for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.turns):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - begin) / num_layers)
    least = statistics.median(seconds["none"])
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {sizes}; ms a layer\n")
    for name, call in calls.items():
        here = statistics.median(seconds[name])
        line = f"{name:20} {1e3 * here:8.3f}  {1e3 * (here - least):+8.3f}  × {here / least:.4f}"
        if name != "none":
            apart_by = jnp.abs(values[name] - values["present"]).max()
            line += f"  differs by {float(apart_by):.1e}"
        print(line)
        for kernel, found in list(accelerator_jax.kernels(call).items())[:NUM_KERNELS]:
            print(f"    {found / num_layers:8.3f}  {kernel[:100]}")
    print(f"\nall in {time.monotonic() - start:.0f} s")


def random(sizes: tuple[int, ...], key: jax.Array) -> tuple[Any, ...]:
    """Return what enters the first layer, the weights, and those of the tokens."""
    L, B, T, D, F = sizes
    keys = jax.random.split(key, 4)
    shapes = ((B, T, D), (L, D, F), (L, D, F), (L, F, D))
    scales = (1, *(shape[1] ** -0.5 for shape in shapes[1:]))
    h_BTD, *weights = (
        jax.random.normal(key, shape, jnp.bfloat16) * jnp.bfloat16(scale)
        for key, shape, scale in zip(keys, shapes, scales, strict=True)
    )
    return h_BTD, tuple(weights), jnp.full((B, T), 1 / T, jnp.float32)


def layers(form: Form) -> Any:
    """Return the jitted scan over layers, whose neurons a form reduces."""

    def run(h_BTD: jax.Array, weights: tuple[jax.Array, ...], weights_BT: jax.Array) -> Any:
        def step(h_BTD: jax.Array, layer: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
            gate_DF, up_DF, down_FD = layer
            z_BTF = jax.nn.silu(h_BTD @ gate_DF) * (h_BTD @ up_DF)
            return h_BTD + z_BTF @ down_FD, form(z_BTF, weights_BT)

        return jax.lax.scan(step, h_BTD, weights)

    return jax.jit(run)


def _done(program: Any, arrays: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(program(*arrays))


if __name__ == "__main__":
    main()
