"""FLOPs against closed forms, collectives of compiled and of given HLO, the roofline."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import NamedSharding, PartitionSpec

from manu_jax import parallel
from manu_jax.models.nn import attention
from manu_jax.planning import compiling, cost, roofline
from manu_jax.planning.chips import GIB, GPUS, TPUS, Chip, target_of
from manu_jax.planning.collectives import Collective, collectives, moved_by_kind
from manu_jax.planning.shapes import Place
from manu_jax.types import ManuError

B, D, F, L = 4, 8, 24, 5
SHAPE = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def flops_of(function, *shapes, trips=1.0):
    return cost.flops(jax.make_jaxpr(function)(*map(SHAPE, shapes)).jaxpr, trips=trips)


def layers(x, w):
    return jax.lax.scan(lambda x, w: (x @ w @ w.T, None), x, w)[0]


def test_a_product_has_two_flops_for_each_multiply():
    assert flops_of(lambda x, w: x @ w, (B, D), (D, F)).total == 2 * B * D * F
    batched = flops_of(lambda x, w: jnp.einsum("BNTD,BNSD->BNTS", x, w), (2, 3, 5, 8), (2, 3, 7, 8))
    assert batched.total == 2 * 2 * 3 * 5 * 7 * 8


def test_a_scan_counts_all_its_layers():
    assert flops_of(layers, (B, D), (L, D, F)).total == L * 2 * 2 * B * D * F


def test_a_gradient_is_three_forward_passes_and_remat_adds_one():
    once = 2 * B * D * F + 2 * B * F

    def loss(w, x, v):
        return (jnp.tanh(x @ w) @ v).sum()

    shapes = ((D, F), (B, D), (F, 1))
    forward = flops_of(loss, *shapes).total
    assert forward == once
    # The inputs have no gradient: of the first product one of two backward products is left.
    both = flops_of(jax.grad(loss), *shapes).total
    assert forward < both <= 3 * forward
    again = flops_of(jax.grad(jax.checkpoint(loss)), *shapes).total
    assert again == both + 2 * B * D * F


def test_a_loop_without_an_end_counts_the_trips_that_it_is_given():
    def decode(x, w):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x @ w)

    found = flops_of(decode, (B, D), (D, D), trips=7)
    assert (found.once, found.looped) == (2 * B * D * D, 7 * 2 * B * D * D)


def test_of_branches_the_dearest_counts():
    def branched(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    assert flops_of(branched, (B, D), (D, D)).total == 2 * 2 * B * D * D


@pytest.mark.parametrize("sizes", [None, (2, 1, 2)])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_attention_by_a_kernel_counts_its_products(monkeypatch, platform, sizes):
    monkeypatch.setattr(attention, "kernel_platform", lambda *_, **__: platform)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    rows, tokens, heads, size = 2, 512, 2, 128

    def attend(q):
        return attention.attend(q, q, q, None)

    with parallel.on_mesh(parallel.make_mesh(*sizes) if sizes else None):
        q = jax.ShapeDtypeStruct((rows, tokens, heads, size), jnp.bfloat16)
        found = cost.flops(jax.make_jaxpr(attend)(q).jaxpr).total
    assert found == 2 * 2 * rows * heads * tokens * tokens * size


def test_a_program_for_one_chip_is_traced_for_the_chip():
    chip = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    with compiling._traced_for(Place(None, chip)):
        assert attention._platform() == "tpu"
        assert jax.make_jaxpr(lambda x: parallel.constrain(x, "batch"))(1.0 * jnp.ones(2))
    with compiling._traced_for(Place(None, jax.devices()[0])):
        assert attention._platform() == "cpu"


def test_a_convolution_counts_its_kernel_for_each_output():
    def convolved(x, w):
        return jax.lax.conv(x, w, (1, 1), "VALID")

    found = flops_of(convolved, (2, 3, 8, 8), (5, 3, 3, 3)).total
    assert found == 2 * (2 * 5 * 6 * 6) * (3 * 3 * 3)


@pytest.fixture(scope="module")
def compiled_text():
    """HLO of a scan over weights that are split, and of a loop that ends by what it finds."""
    mesh = parallel.make_mesh(fsdp=4, devices=jax.devices()[:4])

    def step(x, w):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        state = (0, x)

        def body(state):
            number, x = state
            return number + 1, jnp.tanh(x @ w[0])

        return jax.lax.while_loop(lambda s: (s[0] < 9) & (s[1].sum() > 0), body, state)

    placed = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    x = placed((8, 64), sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    w = placed((L, 64, 64), sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    return jax.jit(step).lower(x, w).compile().as_text()


def test_collectives_of_a_compiled_scan_count_its_layers(compiled_text):
    found = collectives(compiled_text, trips=6, devices=4)
    gathers = [one for one in found if one.kind == "all-gather" and one.bytes == 64 * 64 * 4]
    # Each layer is gathered in the scan; what the second loop needs, once or in each trip.
    assert L in {one.runs for one in gathers if not one.is_looped}
    assert {one.group for one in gathers} == {4}
    assert {(one.runs, one.is_looped) for one in found if one.kind == "all-reduce"} == {(6, True)}


HLO = """HloModule jit_step
%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
%fused (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.7 = bf16[16,8]{1,0} all-gather(%p), channel_id=7, \
replica_groups=mesh['data'=1,'fsdp'=4] {'fsdp'}, dimensions={0}, async_collective_fusion_config={}
}
%fused.done (p: bf16[4,8]) -> bf16[16,8] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.8 = bf16[16,8]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['data'=1,'fsdp'=4] {'fsdp'}, dimensions={0}, async_collective_fusion_config={}
}
%counted (s: (s32[], bf16[4,8])) -> pred[] {
  %s = (s32[], bf16[4,8]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%s), index=0
  %bound = s32[] constant(32)
  ROOT %lt = pred[] compare(%number, %bound), direction=LT
}
%by_two (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %s.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %number.1 = s32[] get-tuple-element(%s.1), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%number.1, %two)
  %x = bf16[4,8]{1,0} get-tuple-element(%s.1), index=1
  %start = bf16[16,8]{1,0} fusion(%x), kind=kOutput, calls=%fused
  %done = bf16[16,8]{1,0} fusion(%x), kind=kOutput, calls=%fused.done
  %moved = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%x), \
channel_id=3, source_target_pairs={{0,1},{1,0}}
  %y = bf16[4,8]{1,0} collective-permute-done(%moved)
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%next, /*index=1*/%y)
}
%until (s: (s32[], bf16[4,8])) -> pred[] {
  %s.2 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %number.2 = s32[] get-tuple-element(%s.2), index=0
  %most = s32[] constant(50)
  %lt.2 = pred[] compare(%number.2, %most), direction=LT
  %seen = pred[] all-reduce(%lt.2), channel_id=5, replica_groups={{0,1},{2,3}}, to_apply=%add.1
  ROOT %both = pred[] and(%lt.2, %seen)
}
%decoded (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %s.3 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %z = bf16[4,8]{1,0} get-tuple-element(%s.3), index=1
  %number.3 = s32[] get-tuple-element(%s.3), index=0
  %reduced = bf16[4,8]{1,0} all-reduce(%z), channel_id=6, replica_groups=[2,2]<=[4], to_apply=%add.1
  ROOT %out.1 = (s32[], bf16[4,8]{1,0}) tuple(%number.3, %reduced)
}
%known (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %s.4 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %v = bf16[4,8]{1,0} get-tuple-element(%s.4), index=1
  %number.4 = s32[] get-tuple-element(%s.4), index=0
  %scattered = bf16[4,8]{1,0} reduce-scatter(%v), channel_id=9, replica_groups={{0,1,2,3}}, \
dimensions={0}, to_apply=%add.1
  ROOT %out.2 = (s32[], bf16[4,8]{1,0}) tuple(%number.4, %scattered)
}
ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %x.1 = bf16[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start.1 = (s32[], bf16[4,8]{1,0}) tuple(%zero, %x.1)
  %first = (s32[], bf16[4,8]{1,0}) while(%start.1), condition=%counted, body=%by_two
  %second = (s32[], bf16[4,8]{1,0}) while(%first), condition=%until, body=%decoded
  %third = (s32[], bf16[4,8]{1,0}) while(%second), condition=%until, body=%known, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %result = bf16[4,8]{1,0} get-tuple-element(%third), index=1
}
"""


def test_loops_of_an_hlo_go_round_as_often_as_it_says():
    found = {one.kind: one for one in collectives(HLO, trips=49) if one.kind != "all-reduce"}
    # The counter goes to 32 by two; a gather that is spread over two fusions counts once.
    assert (found["all-gather"].runs, found["all-gather"].bytes) == (16, 16 * 8 * 2)
    assert (found["all-gather"].group, found["all-gather"].is_looped) == (4, False)
    permuted = found["collective-permute"]
    assert (permuted.runs, permuted.bytes, permuted.received) == (16, 4 * 8 * 2, 16 * 64)
    assert (found["reduce-scatter"].runs, found["reduce-scatter"].group) == (3, 4)


def test_a_loop_that_ends_by_what_it_finds_takes_the_trips_that_are_given():
    reduced = [one for one in collectives(HLO, trips=49) if one.kind == "all-reduce"]
    by_bytes = {one.bytes: one for one in reduced}
    inside = by_bytes[4 * 8 * 2]
    assert (inside.runs, inside.group, inside.is_looped) == (49, 2, True)
    # The condition of the loop whose trips are known is asked once more.
    assert by_bytes[1].runs == 49 + 3 + 1
    moved = moved_by_kind(reduced)["all-reduce"]
    assert moved["bytes"] >= moved["bytes_in_loops"] >= 49 * 64


@pytest.mark.parametrize(
    ("kind", "received"),
    [
        ("all-gather", 0.75 * 1000),
        ("all-reduce", 1.5 * 1000),
        ("reduce-scatter", 3 * 1000),
        ("all-to-all", 0.75 * 1000),
        ("collective-permute", 1000),
    ],
)
def test_a_ring_of_four_receives_what_it_lacks(kind, received):
    assert Collective(kind, 100, 4, 10, False).received == received


def test_the_roofline_waits_for_the_slowest():
    chip = Chip("plain", flops=1e12, memory=GIB, bandwidth=1e9, network=1e6)
    moved = [Collective("collective-permute", 100, 4, 20, False)]
    found = roofline.seconds(
        chip, flops=8e12, num_chips=4, weights_read=1e9, other_bytes=0.5e9, moved=moved
    )
    assert (found.compute, found.memory, found.network) == (2.0, 1.5, 0.002)
    assert (found.at_least, found.at_most, found.bound) == (2.0, 3.502, "compute")


def test_no_chip_has_more_room_than_its_memory():
    sizes = {"v4": 32, "v5e": 16, "v5p": 96, "v6e": 32, "tpu7x": 96}
    assert {name: chip.memory < sizes[name] * GIB for name, chip in TPUS.items()} == dict.fromkeys(
        sizes, True
    )
    assert all(chip.memory > 70 * GIB for chip in GPUS.values())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tpu=v9:2x2", "known chips: v4, v5e, v5p, v6e, tpu7x"),
        ("tpu=v5e", "as in tpu=v5e:4x4"),
        ("gpu=b1:8", "known GPUs: a100, h100, h200"),
        ("gpu=h100:0", "expected tpu=v5e:4x4, devices=8 or gpu=h100:8"),
        ("devices=0", "expected tpu"),
        ("devices=99999", "a processor stands for 1,024 devices at most"),
        ("tpu=v5e:4x4x4", "v5e has two sides of at most 16 chips, as in tpu=v5e:8x8"),
        ("tpu=v6e:1000x1000", "v6e has two sides of at most 16 chips"),
        ("devices=99", "this machine has 8 devices"),
        ("4x4", "expected tpu"),
    ],
)
def test_an_unknown_target_is_an_error_that_says_what_is_known(text, part):
    jax.devices()  # found before: as many as they are
    with pytest.raises(ManuError, match=f"--plan {text}: .*{part}"):
        target_of(text)


def test_a_gpu_is_arithmetic_alone_and_devices_are_those_of_the_machine():
    gpu, devices = target_of("gpu=h100:8"), target_of("devices=4")
    assert (gpu.count, gpu.devices, gpu.chip) == (8, None, GPUS["h100"])
    assert devices.devices == tuple(jax.devices()[:4])
    assert devices.memory > 2**28 and np.isfinite(devices.memory)
