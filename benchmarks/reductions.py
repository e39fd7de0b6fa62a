"""What it costs to reduce a layer's neurons over its tokens, on the device: forms beside none.

    python benchmarks/reductions.py [--turns 10] [--small]

Four layers of an MLP of LLaVA-1.5-7B's sizes run in a scan, in bfloat16 at 32 samples of 768
tokens, with no capture and with each form of `reduce_tokens` that gives its numbers. Times are
medians of the turns; below each stand the kernels that took the most of a profiled call.

On a GPU the compiler wants the tokens of a neuron to be neighbours where it sums over them, and
copies the gate, the up projection and the neurons for that. It is kept from it in all forms but
"weighted sum".
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
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from manu_jax.models.nn.capture import TowerCapture, reduce_tokens
from manu_jax.models.nn.layers import in_rows
from manu_jax.types import Capture

NUM_KERNELS = 5
# Layers, examples, tokens, width, neurons
SIZES, SMALL = (4, 32, 768, 4096, 11008), (2, 4, 48, 32, 64)
Form = Callable[[jax.Array, jax.Array], Any]
# From gate, up and weights to the neurons and what they are reduced to
Maker = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
STAGES = 24  # fewer than 32: on a GPU each thread then sums numbers of its own
# Of a kernel: tokens at once, neurons of a program, warps
TILE, WARPS = (16, 256), 4
INTERPRET = jax.default_backend() == "cpu"


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


def two_stages(z_BTF: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """As `present`, in `STAGES` parts of the tokens that are summed first."""
    num_tokens = -(-z_BTF.shape[1] // STAGES)
    room = ((0, 0), (0, num_tokens * STAGES - z_BTF.shape[1]), (0, 0))
    z_BTF = jnp.pad(jnp.where(weights_BT[..., None] > 0, z_BTF, 0), room)
    z_BSTF = z_BTF.reshape(len(z_BTF), STAGES, num_tokens, -1)
    sums_BTF = apart(in_rows(jnp.sum(z_BSTF, axis=1, dtype=jnp.float32)))
    return sums_BTF.sum(axis=1) * weights_BT.max(axis=1, keepdims=True)


def kernel(z_BTF: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """As a kernel that reads the neurons once, in the order in which they lie."""
    (sums_BF,) = _kernel(lambda z: z, (z_BTF,), weights_BT)
    return sums_BF


def making_kernel(
    gate_BTF: jax.Array, up_BTF: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As a kernel that makes the neurons, too."""

    def made(gate: jax.Array, up: jax.Array) -> jax.Array:
        gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
        return (gate / (1 + jnp.exp(-gate)) * up).astype(gate_BTF.dtype)

    z_BTF, sums_BF = _kernel(made, (gate_BTF, up_BTF), weights_BT, keeps=True)
    return z_BTF, sums_BF


def _kernel(
    made: Callable[..., jax.Array],
    inputs: tuple[jax.Array, ...],
    weights_BT: jax.Array,
    *,
    keeps: bool = False,
) -> tuple[jax.Array, ...]:
    """Return what is made of the inputs, if it is kept, and its weighted sums over tokens.

    A program has some neurons of one example, and goes through its tokens.
    """
    B, T, F = inputs[0].shape
    num_tokens, num_neurons = TILE

    def program(*refs: Any) -> None:
        *input_refs, weights_ref = refs[: len(inputs) + 1]
        sums_ref = refs[-1]
        example, first = pl.program_id(0), pl.program_id(1) * num_neurons
        is_neuron_F = first + jnp.arange(num_neurons) < F

        def add(step: Any, sums_TF: jax.Array) -> jax.Array:
            tokens = pl.ds(step * num_tokens, num_tokens)
            is_token_T = step * num_tokens + jnp.arange(num_tokens) < T
            place = (example, tokens, pl.ds(first, num_neurons))
            mask_TF = is_token_T[:, None] & is_neuron_F[None]
            weights_T = triton.load(weights_ref.at[example, tokens], mask=is_token_T, other=0)
            z_TF = made(*(triton.load(ref.at[place], mask=mask_TF, other=0) for ref in input_refs))
            if keeps:
                triton.store(refs[-2].at[place], z_TF, mask=mask_TF)
            return sums_TF + jnp.where(weights_T[:, None] > 0, z_TF.astype(jnp.float32), 0)

        zeros_TF = jnp.zeros(TILE, jnp.float32)
        sums_F = jax.lax.fori_loop(0, -(-T // num_tokens), add, zeros_TF).sum(axis=0)
        place = (example, pl.ds(first, num_neurons))
        triton.store(sums_ref.at[place], sums_F, mask=is_neuron_F)

    shapes = [jax.ShapeDtypeStruct((B, T, F), inputs[0].dtype)] * keeps
    *kept, sums_BF = pl.pallas_call(
        program,
        grid=(B, -(-F // num_neurons)),
        out_shape=[*shapes, jax.ShapeDtypeStruct((B, F), jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=INTERPRET,
    )(*inputs, weights_BT)
    return *kept, sums_BF * weights_BT.max(axis=1, keepdims=True)


def apart(z_BTF: jax.Array) -> jax.Array:
    """Keep the compiler from fusing a form with what makes the neurons."""
    return jax.lax.optimization_barrier(z_BTF)


def of_neurons(form: Form, *kept: Callable[[jax.Array], jax.Array]) -> Maker:
    """Return a form that makes the neurons, too; kept: what is done to them before it."""

    def made(
        gate_BTF: jax.Array, up_BTF: jax.Array, weights_BT: jax.Array
    ) -> tuple[jax.Array, Any]:
        z_BTF = jax.nn.silu(gate_BTF) * up_BTF
        return z_BTF, form(functools.reduce(lambda z, keep: keep(z), kept, z_BTF), weights_BT)

    return made


FORMS: dict[str, Maker] = {
    "none": of_neurons(none),
    "present": of_neurons(present),
    "weighted sum": of_neurons(weighted_sum),
    "sixteen rows": of_neurons(sixteen_rows),
    "one product": of_neurons(one_product),
    "present, apart": of_neurons(present, in_rows, apart),
    "two stages": of_neurons(two_stages, in_rows, apart),
    "kernel": of_neurons(kernel),
    "making kernel": making_kernel,
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


def layers(form: Maker) -> Any:
    """Return the jitted scan over layers, whose neurons a form makes and reduces."""

    def run(h_BTD: jax.Array, weights: tuple[jax.Array, ...], weights_BT: jax.Array) -> Any:
        def step(h_BTD: jax.Array, layer: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
            gate_DF, up_DF, down_FD = layer
            z_BTF, reduced = form(h_BTD @ gate_DF, h_BTD @ up_DF, weights_BT)
            return h_BTD + z_BTF @ down_FD, reduced

        return jax.lax.scan(step, h_BTD, weights)

    return jax.jit(run)


def _done(program: Any, arrays: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(program(*arrays))


if __name__ == "__main__":
    main()
