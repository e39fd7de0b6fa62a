"""Attention by kernels equals the reference: values, gradients, masks, meshes, whole models.

Kernels of Pallas are interpreted on CPU; of cuDNN's the arguments are tried, and that its call is
in a program for GPUs. `tools/check_gpu.py` compares on a GPU.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gemma3_cases import cases as gemma3
from idefics2_cases import cases as idefics2
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn
from qwen_cases import cases as qwen

from manu_jax import parallel
from manu_jax.models import loaded as loading
from manu_jax.models.families.llama import Llama, LlamaConfig
from manu_jax.models.nn import attention, kernels
from manu_jax.models.nn.decoder_config import DecoderConfig
from manu_jax.models.nn.kernels import Pattern
from manu_jax.models.nn.rope import Rope
from manu_jax.types import Batch

T = 200  # two blocks, and not a multiple of one
# float32 on both sides; sums of some 200 terms in another order.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCKS", (128,))


@pytest.fixture
def on_tpu(monkeypatch):
    """As if the program were for a TPU, with its kernels interpreted, in any dtype and length."""
    monkeypatch.setattr(attention, "splash", functools.partial(attention.splash, interpret=True))

    def platform(q_BTNH, *, pattern, cap):
        return None if pattern is None else "tpu"

    monkeypatch.setattr(attention, "kernel_platform", platform)


def random_heads(num_heads=2, num_key_heads=2, rows=2, tokens=T, dtype=jnp.float32):
    draw = np.random.default_rng(0).standard_normal
    sizes = (num_heads, num_key_heads, num_key_heads)
    return [jnp.asarray(draw((rows, tokens, n, 16)), dtype) for n in sizes]


def padded():
    """Which tokens are real [B, T]: a row lacks some on the left, the other on the right."""
    place = np.arange(T)
    return np.stack([place >= 30, place < 170])


def mask_of(pattern, is_real_BT):
    """What the mask of a pattern says, as decoders and towers make it."""
    distance_TT = np.arange(T)[:, None] - np.arange(T)[None]
    mask_BTT = np.broadcast_to(is_real_BT[:, None], (2, T, T))
    if pattern.is_causal:
        mask_BTT = mask_BTT & (distance_TT >= 0)[None]
    if pattern.window is not None:
        mask_BTT = mask_BTT & (distance_TT < int(pattern.window))[None]
    if pattern.segment_BS is not None and not pattern.is_causal:
        segment_BT = np.asarray(pattern.segment_BS)
        mask_BTT = mask_BTT & (segment_BT[:, :, None] == segment_BT[:, None])
    return jnp.asarray(mask_BTT)


def reference(q, k, v, mask_BTS, **scores):
    return attention.reference(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask_BTS, **scores)


def compare(kernel, heads, mask_BTS, is_real_BT, **scores):
    """Values and gradients at real tokens are those of the reference; all are finite."""
    draw = np.random.default_rng(1).standard_normal
    weight = jnp.asarray(draw(heads[0].shape) * is_real_BT[..., None, None], heads[0].dtype)

    def both(function):
        def run(*heads):
            value, pull = jax.vjp(function, *heads)
            return value, *pull(weight)

        return [np.asarray(x, np.float32) for x in jax.jit(run)(*heads)]

    found = both(kernel)
    expected = both(lambda q, k, v: reference(q, k, v, mask_BTS, **scores))
    for mine, theirs in zip(found, expected, strict=True):
        assert np.isfinite(mine).all()
        np.testing.assert_allclose(mine[is_real_BT], theirs[is_real_BT], atol=TOLERANCE, rtol=1e-4)


PATTERNS = {
    "causal": Pattern(jnp.asarray(padded()), is_causal=True),
    "window": Pattern(
        jnp.asarray(padded()), is_causal=True, window=jnp.asarray(50), windows=(50, None)
    ),
    "no window in this layer": Pattern(
        jnp.asarray(padded()), is_causal=True, window=jnp.asarray(2**30), windows=(50, None)
    ),
    "all": Pattern(),
    "padding alone": Pattern(jnp.asarray(padded())),
    "blocks": Pattern(jnp.asarray(np.where(padded(), np.arange(T) // 24, -1))),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_splash_attention_equals_the_reference(name):
    pattern = PATTERNS[name]
    is_real_BT = np.ones((2, T), bool) if name == "all" else padded()
    kernel = functools.partial(kernels.splash, pattern=pattern, scale=0.3, interpret=True)
    mask_BTT = mask_of(pattern, is_real_BT)
    compare(kernel, random_heads(), mask_BTT, is_real_BT, scale=0.3)


def test_splash_attention_groups_queries_and_caps_scores():
    pattern = PATTERNS["causal"]
    kernel = functools.partial(kernels.splash, pattern=pattern, scale=1.5, cap=2.0, interpret=True)
    heads = random_heads(num_heads=4)
    compare(kernel, heads, mask_of(pattern, padded()), padded(), scale=1.5, cap=2.0)


@pytest.mark.parametrize("tokens", [T, 147])  # an odd number is filled up
def test_cudnn_is_given_what_the_reference_is_given(tokens):
    heads = [x[:, :tokens] for x in random_heads(num_heads=4)]
    is_real_BT = padded()[:, :tokens]
    mask_BTT = mask_of(PATTERNS["causal"], padded())[:, :tokens, :tokens]

    def kernel(q, k, v):
        return kernels.cudnn(q, k, v, mask_BTT, scale=0.3, is_causal=True, implementation="xla")

    compare(kernel, heads, mask_BTT, is_real_BT, scale=0.3)


def test_cudnn_is_told_an_odd_number_of_tokens_that_have_no_mask():
    heads = [x[:, :147] for x in random_heads()]
    is_real_BT = padded()[:, :147] | True

    def kernel(q, k, v):
        return kernels.cudnn(q, k, v, None, scale=0.25, implementation="xla")

    compare(kernel, heads, None, is_real_BT)


def test_cudnn_is_given_a_mask_that_is_the_same_for_all_queries():
    heads, is_real_BT = random_heads(), padded()
    mask_B1S = jnp.asarray(is_real_BT)[:, None]

    def kernel(q, k, v):
        return kernels.cudnn(q, k, v, mask_B1S, scale=0.25, implementation="xla")

    compare(kernel, heads, mask_B1S, is_real_BT)


def test_cudnns_attention_is_mapped_over_as_a_larger_batch():
    # As over the gates of candidates: what enters is mapped, the mask is not.
    heads, mask_BTT = random_heads(num_heads=4), mask_of(PATTERNS["causal"], padded())
    factors = jnp.asarray([1.0, -0.5, 2.0])

    def total(function):
        def of(factor, q, k, v):
            return (jnp.asarray(factor) * function(q * factor, k, v)).sum()

        return jax.jit(
            jax.vmap(jax.value_and_grad(of, argnums=(1, 2)), in_axes=(0, None, None, None))
        )

    def kernel(q, k, v):
        mixed = kernels.cudnn(q, k, v, mask_BTT, scale=0.25, implementation="xla")
        return mixed * padded()[..., None, None]

    def expected(q, k, v):
        return reference(q, k, v, mask_BTT) * padded()[..., None, None]

    for mine, theirs in zip(
        jax.tree.leaves(total(kernel)(factors, *heads)),
        jax.tree.leaves(total(expected)(factors, *heads)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-3, rtol=1e-3)  # sums of 6,400 numbers


@pytest.mark.slow
@pytest.mark.parametrize("key_heads", [4, 1])  # split over tensor, copied to all of its devices
def test_on_a_mesh_each_device_runs_the_kernel_on_its_rows_and_heads(on_tpu, key_heads):
    pattern = PATTERNS["window"]
    heads = [jnp.concatenate([x, x[::-1]]) for x in random_heads(4, key_heads)]
    both = jnp.concatenate([jnp.asarray(padded()), jnp.asarray(padded())])
    pattern = dataclasses.replace(pattern, segment_BS=both)
    mask_BTT = jnp.concatenate([mask_of(PATTERNS["window"], padded())] * 2)

    def kernel(q, k, v):
        return attention.attend(q, k, v, mask_BTT, pattern=pattern)

    with jax.set_mesh(parallel.make_mesh(2, 2, 2)):
        compare(kernel, heads, mask_BTT, np.asarray(both))


def test_rows_that_do_not_divide_are_done_whole_by_every_device(on_tpu):
    heads, pattern = random_heads(3, 3), PATTERNS["causal"]
    mask_BTT = mask_of(pattern, padded())

    def kernel(q, k, v):
        return attention.attend(q, k, v, mask_BTT, pattern=pattern)

    with jax.set_mesh(parallel.make_mesh(2, 2, 2)):
        compare(kernel, heads, mask_BTT, padded())


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("gpu", {}, "gpu"),
        ("gpu", {"dtype": jnp.float16}, "gpu"),
        ("gpu", {"dtype": jnp.float32}, None),
        ("gpu", {"cap": 50.0}, None),
        ("gpu", {"pattern": None}, "gpu"),
        ("gpu", {"head": 136}, None),
        ("gpu", {"head": 84}, None),
        ("tpu", {}, "tpu"),
        ("tpu", {"cap": 50.0, "head": 136}, "tpu"),
        ("tpu", {"dtype": jnp.float16}, None),
        ("tpu", {"pattern": None}, None),
        ("tpu", {"tokens": 1}, None),
        ("cpu", {}, None),
    ],
)
def test_a_kernel_runs_where_it_takes_the_queries(monkeypatch, platform, changes, expected):
    given = {"dtype": jnp.bfloat16, "cap": None, "pattern": Pattern(), "head": 128, "tokens": 128}
    given |= changes
    monkeypatch.setattr(attention, "_platform", lambda: platform)
    monkeypatch.setattr(attention, "_largest_cudnn_head", lambda: 128)
    q_BTNH = jnp.zeros((1, given["tokens"], 2, given["head"]), given["dtype"])
    scores = {"pattern": given["pattern"], "cap": given["cap"]}
    assert attention.kernel_platform(q_BTNH, **scores) == expected
    # Not by `use`, which makes JAX forget every program of this process: nothing is traced here.
    monkeypatch.setattr(attention, "_form", "reference")
    assert attention.kernel_platform(q_BTNH, **scores) is None


@pytest.mark.slow
def test_another_form_is_traced_anew(monkeypatch):
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    monkeypatch.setattr(attention, "splash", functools.partial(attention.splash, interpret=True))
    heads = random_heads(dtype=jnp.bfloat16)
    program = jax.jit(lambda *heads: attention.attend(*heads, mask_BTS=None))
    found = []
    try:
        for form in ("auto", "reference", "auto"):
            attention.use(form)
            found.append("pallas_call" in str(program.trace(*heads).jaxpr))
    finally:
        attention.use("auto")
    assert found == [True, False, True]


def decoder(windows):
    config = DecoderConfig(
        vocabulary=64, width=32, num_layers=2, num_heads=4, num_key_heads=2, head_size=16,
        num_neurons=64, activation="silu", norm_epsilon=1e-5, context=512, rope=Rope(),
        windows=windows, qkv_bias=False, output_bias=False, mlp_bias=False, is_tied=True,
    )  # fmt: skip
    model = Llama(jax.random.key(0), LlamaConfig(config))
    rows, tokens = 4, 136
    batch = Batch(
        token_ids_BT=jnp.zeros((rows, tokens), jnp.int32),
        attention_mask_BT=jnp.ones((rows, tokens), bool),
        positions_BT=jnp.broadcast_to(jnp.arange(tokens), (rows, tokens)),
        loss_weights_BT=jnp.ones((rows, tokens)),
        example_weights_B=jnp.ones(rows),
    )
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model), batch


MESH, ALONE = (2, 2, 2), None
CALLS = {"cuda": r"__cudnn\$fmha", "tpu": "tpu_custom_call", "cpu": None}


@pytest.mark.parametrize(
    ("lowered_for", "windows", "sizes"),
    [
        ("cuda", (None, None), MESH),
        ("tpu", (20, None), MESH),
        ("cpu", (None, None), ALONE),
        pytest.param("cuda", (None, None), ALONE, marks=[pytest.mark.slow]),
        pytest.param("tpu", (None, None), ALONE, marks=[pytest.mark.slow]),
        pytest.param("tpu", (None, None), MESH, marks=[pytest.mark.slow]),
    ],
)
def test_a_gradient_for_an_accelerator_makes_no_scores(monkeypatch, lowered_for, windows, sizes):
    platform = "gpu" if lowered_for == "cuda" else lowered_for
    monkeypatch.setattr(attention, "_platform", lambda: platform)
    monkeypatch.setattr(attention, "_largest_cudnn_head", lambda: 128)
    monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91000)
    model, batch = decoder(windows)

    def loss(model):
        return model(batch).logits_BTV.sum()

    with parallel.on_mesh(parallel.make_mesh(*sizes) if sizes else None):
        traced = jax.jit(jax.grad(loss)).trace(model)
        text = traced.lower(lowering_platforms=(lowered_for,)).as_text()
    makes_scores = re.search(r"tensor<\d+x\d+x(\d+x)?136x136xf32>", text) is not None
    call = CALLS[lowered_for]
    assert makes_scores == (call is None)
    assert call is None or re.search(call, text)


def test_candidates_are_mapped_over_on_a_gpu(monkeypatch):
    monkeypatch.setattr(attention, "_platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_largest_cudnn_head", lambda: 128)
    monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91000)
    model, batch = decoder((None, None))
    say = jax.vmap(lambda gate_LF: model(batch, {"text": gate_LF}).logits_BTV)
    text = jax.jit(say).trace(jnp.ones((3, 2, 64))).lower(lowering_platforms=("cuda",)).as_text()
    call = next(line for line in text.splitlines() if "__cudnn$fmha" in line)
    assert "tensor<12x136x4x16xbf16>" in call and "tensor<12x1x136x136xbf16>" in call


FAMILIES = {
    "qwen-vl": (qwen, "2.5"),
    "idefics2": (idefics2, "whole-images"),
    "gemma3": (gemma3, "one-key-head"),
}
SLOW = [pytest.param(name, marks=[pytest.mark.slow]) for name in ("idefics2", "gemma3")]


@pytest.mark.parametrize("name", ["qwen-vl", *SLOW])
def test_whole_models_say_the_same_with_kernels(on_tpu, name, tmp_path):
    cases, case = FAMILIES[name]
    cases.write_case(case, tmp_path)
    loaded = loading.load(tmp_path)
    for side in ("left", "right"):
        batch = loaded.batch(cases.PROMPTS, cases.image_lists(), padding_side=side)
        found = jax.jit(lambda model, batch: model(batch).logits_BTV)(loaded.model, batch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "kernel_platform", lambda *_, **__: None)
            expected = jax.jit(lambda model, batch: model(batch).logits_BTV)(loaded.model, batch)
        mask_BT = np.asarray(batch.attention_mask_BT)
        assert np.isfinite(found).all()
        # Logits of size 1 to 10, after three layers and a tower in float32.
        np.testing.assert_allclose(found[mask_BT], expected[mask_BT], atol=1e-4)
