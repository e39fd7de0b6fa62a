"""What a run may be planned for: chips and their rates, and the devices that stand for them.

    tpu=v5e:4x4     the TPU compiler, without a TPU (libtpu: pip install 'manu_jax[plan]')
    devices=8       devices of this machine
    gpu=h100:8      arithmetic alone

Rates of TPUs are those of Austin et al. 2025, "How to Scale Your Model"
(jax-ml.github.io/scaling-book/tpus), of TPU7x those of Google's page on it, halved: a chip is two
devices; and of GPUs those of NVIDIA's data sheets, without sparsity.
What a TPU program may use of its memory is what the compiler says when it refuses one.
"""

import dataclasses
import math
import os
import re
import sys
from typing import Any

import jax
from jax._src import xla_bridge  # whether JAX has looked for devices no public name tells

from manu_jax import parallel
from manu_jax.types import ManuError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as JAX sees it as one device.

    flops: bfloat16, a second. memory: bytes that a program may use. bandwidth: of the memory, bytes
    a second. network: bytes a second that a chip receives in a ring, both directions together.
    config: the compiler's name of how its cores are joined; None: it has one. devices: as which JAX
    sees one of it; the rates are of one of these.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float
    network: float
    config: str | None = None
    devices: int = 1


def _chip(name: str, gib: float, **rates: Any) -> Chip:
    return Chip(name, memory=int(gib * GIB), **rates)


TPUS: dict[str, Chip] = {
    "v4": _chip("TPU v4", 30.75, flops=275e12, bandwidth=1.2e12, network=9e10, config="megacore"),
    "v5e": _chip("TPU v5e", 15.75, flops=197e12, bandwidth=8.1e11, network=9e10),
    "v5p": _chip(
        "TPU v5p", 95.74, flops=459e12, bandwidth=2.8e12, network=1.8e11, config="megacore"
    ),
    "v6e": _chip("TPU v6e", 31.25, flops=920e12, bandwidth=1.6e12, network=1.8e11),
    "tpu7x": _chip(
        "halves of TPU7x", 94.75, flops=1.15e15, bandwidth=3.69e12, network=1e11, devices=2
    ),
}
GPUS: dict[str, Chip] = {
    "a100": _chip("A100 80 GB SXM", 80e9 / GIB, flops=312e12, bandwidth=2.039e12, network=3e11),
    "h100": _chip("H100 80 GB SXM", 80e9 / GIB, flops=989e12, bandwidth=3.35e12, network=4.5e11),
    "h200": _chip("H200 141 GB SXM", 141e9 / GIB, flops=989e12, bandwidth=4.8e12, network=4.5e11),
}
# Rates for devices whose own are not known: what is chosen by them depends on their ratios alone.
USUAL = _chip("devices of an unknown kind", 0, flops=2e14, bandwidth=1e12, network=1e11)
# What JAX calls a chip → the chip; the first whose pattern is found in the name.
DEVICE_KINDS: dict[str, Chip] = {
    r"TPU v5 ?lite|TPU v5e": TPUS["v5e"],
    r"TPU v6 ?lite|TPU v6e": TPUS["v6e"],
    r"TPU v5": TPUS["v5p"],
    r"TPU v4": TPUS["v4"],
    r"TPU ?v?7x": TPUS["tpu7x"],
    r"A100": GPUS["a100"],
    r"H200": GPUS["h200"],
    r"H100": GPUS["h100"],
}
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Some topologies that the compiler knows; of chips that are not named here, CUBES.
CUBES = ("2x2x1", "2x2x2", "2x2x4", "4x4x4")
SQUARES = ("2x2", "2x4", "4x4", "8x8")
FLAT: dict[str, tuple[str, ...]] = {"v5e": SQUARES, "v6e": SQUARES}
LONGEST = 16  # side of a flat topology; of a longer one libtpu aborts the process
MOST_HERE = 1024  # devices that a processor stands for
COUNT = re.compile(r"[1-9][0-9]{0,5}")  # of devices
FORMS = "tpu=v5e:4x4, devices=8 or gpu=h100:8"


@dataclasses.dataclass(frozen=True)
class Target:
    """What is planned for. devices: what programs are compiled for; None: nothing is compiled.

    chip: None for devices of this machine, whose rates are not known.
    """

    name: str
    chip: Chip | None
    count: int
    devices: tuple[Any, ...] | None

    @property
    def memory(self) -> int:
        """Bytes of each device that a program may use."""
        if self.chip is not None:
            return self.chip.memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self.count

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, as `devices=N` names it."""
        return self.chip is None

    @property
    def title(self) -> str:
        kind = "devices of this machine" if self.chip is None else self.chip.name
        return f"{self.count} × {kind} ({self.name})"


def target_of(text: str) -> Target:
    """Return what `--plan` names; ManuError for what no compiler knows.

    `devices=N` takes effect before JAX has looked for devices.
    """
    kind, _, value = text.partition("=")
    if kind == "tpu" and value:
        return _tpu(text, value)
    name, _, count = value.partition(":")
    if kind == "gpu" and COUNT.fullmatch(count):
        if name not in GPUS:
            raise ManuError(f"--plan {text}: known GPUs: {', '.join(GPUS)}.")
        return Target(text, GPUS[name], int(count), None)
    if kind == "devices" and COUNT.fullmatch(value):
        return _devices(text, int(value))
    raise ManuError(f"--plan {text or repr(text)}: expected {FORMS}.")


def target_here() -> Target:
    """Return all devices of the job as a target; all processes call it.

    Memory is what the first process's first device has free to use; of devices that do not say so,
    a share of the machine's.
    """
    devices = jax.devices()
    kind = devices[0].device_kind
    known = (chip for name, chip in DEVICE_KINDS.items() if re.search(name, kind))
    chip = next(known, dataclasses.replace(USUAL, name=kind))
    stats = jax.local_devices()[0].memory_stats() or {}
    here = Target(kind, None, len(devices), None).memory
    memory = stats.get("bytes_limit") or chip.memory or here
    memory = parallel.broadcast(memory >> 20) << 20
    return Target(kind, dataclasses.replace(chip, memory=memory), len(devices), tuple(devices))


def _tpu(text: str, topology: str) -> Target:
    chip = TPUS.get(topology.partition(":")[0])
    if chip is None or not re.fullmatch(r"\w+:[0-9]+(x[0-9]+)+", topology):
        raise ManuError(
            f"--plan {text}: expected a chip and its topology, as in tpu=v5e:4x4; known chips: "
            f"{', '.join(TPUS)}."
        )
    family, _, shape = topology.partition(":")
    sides = [int(side) for side in shape.split("x")]
    if family in FLAT and (max(sides) > LONGEST or any(side != 1 for side in sides[2:])):
        raise ManuError(
            f"--plan {text}: {family} has two sides of at most {LONGEST} chips, as in "
            f"tpu={family}:{FLAT[family][-1]}."
        )
    _check_libtpu(text)
    # libtpu would ask the cloud what this machine is, and take its TPU for this process alone.
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    if jax.config.values["jax_platforms"] is None:
        jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    settings = {} if chip.config is None else {"chip_config_name": chip.config}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **settings
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        known = ", ".join(f"tpu={family}:{one}" for one in FLAT.get(family, CUBES))
        raise ManuError(
            f"--plan {text}: the compiler does not know it: {reason}. Among those that it knows: "
            f"{known}."
        ) from error
    assert len(found) == math.prod(sides) * chip.devices, "as many devices a chip as is known"
    return Target(text, chip, len(found), tuple(found))


def _check_libtpu(text: str) -> None:
    """Raise ManuError where the TPU compiler is missing, or this system has none."""
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        where = "" if sys.platform == "linux" else " (there is one for Linux alone)"
        raise ManuError(
            f"--plan {text}: the TPU compiler is not installed{where}. "
            "python -m pip install 'manu_jax[plan]'."
        )


def _devices(text: str, count: int) -> Target:
    if count > MOST_HERE:
        raise ManuError(
            f"--plan {text}: a processor stands for {MOST_HERE:,} devices at most. Plan for a TPU "
            "or a GPU, as in gpu=h100:2048."
        )
    if not xla_bridge.backends_are_initialized():
        if jax.config.values["jax_platforms"] in (None, "", "cpu"):
            jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices()
    if len(found) < count:
        raise ManuError(
            f"--plan {text}: this machine has {len(found)} devices. Give fewer, or set "
            f"JAX_PLATFORMS=cpu to plan for {count} that its processor stands for."
        )
    return Target(text, None, count, tuple(found[:count]))
