"""How fast a Hugging Face folder is read, and how much memory that takes, beside safetensors.

    python benchmarks/load.py --gigabytes 8 --mesh 1,8,1 [--processes 2]

Makes a LLaVA of random bfloat16 weights, of about that size, in a temporary folder. Then reads it
in turns: onto the devices of a mesh, as `manu_jax.load` does, and by `safetensors.numpy.load_file`.
"cold": the files' pages are dropped from the system's cache before each turn, as far as the system
does so for its users. Peak memory: how much the process grew while it read, against what its
devices hold afterwards; on CPU devices that is in the same memory. --processes: that many of this
machine stand for hosts and share the mesh; each tells how much it grew (warm, manu_jax alone).
"""

import argparse
import ctypes
import gc
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from models import ratio

WIDTH, NEURONS, HEADS, TOKENS = 2048, 5504, 16, 32064
LAYER_BYTES = 2 * (4 * WIDTH**2 + 3 * WIDTH * NEURONS + 2 * WIDTH)
OTHER_BYTES = 2 * 2 * TOKENS * WIDTH
GIBIBYTE = 2**30


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--mesh", default="1,1,1", metavar="DATA,FSDP,TENSOR")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", help="where the checkpoint is made (default: temporary)")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--read", metavar="FOLDER", help=argparse.SUPPRESS)  # as one of several
    options = parser.parse_args(arguments)
    sizes = [int(size) for size in options.mesh.split(",")]
    if np.prod(sizes) % options.processes:
        parser.error(f"--processes {options.processes} do not divide the mesh {options.mesh}")
    import jax

    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_num_cpu_devices", int(np.prod(sizes)) // options.processes)
    from manu_jax import parallel

    if options.read:
        parallel.join()
        read_together(options, parallel.make_mesh(*sizes))
        return
    if options.processes > 1:
        start_together(options)
        return
    mesh = parallel.make_mesh(*sizes)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        family, config = write_model(Path(folder), options.gigabytes)
        files = sorted(Path(folder).glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        device = jax.devices()[0].device_kind
        print(f"{size / 1e9:.2f} GB in {len(files)} files, mesh {options.mesh} of {device}")
        for name in ("warm", "cold"):
            times: dict[str, list[float]] = {"manu_jax": [], "safetensors": []}
            peaks = []
            for _ in range(options.turns):
                for reader, read in (
                    ("manu_jax", lambda: read_model(Path(folder), family, config, mesh)),
                    ("safetensors", lambda: read_files(files)),
                ):
                    if name == "cold":
                        drop(files)
                    seconds, grown, held = measured(read)
                    gc.collect()
                    times[reader].append(seconds)
                    if reader == "manu_jax":
                        peaks.append(grown / held)
            rates = {k: size / 1e9 / statistics.median(v) for k, v in times.items()}
            against = ratio(times["safetensors"], times["manu_jax"])
            print(
                f"{name}: manu_jax {rates['manu_jax']:.2f} GB/s, safetensors "
                f"{rates['safetensors']:.2f} GB/s, median ratio {against:.2f}; peak memory "
                f"{max(peaks):.2f} × what the devices hold"
            )


def start_together(options: argparse.Namespace) -> None:
    """Make the weights, and read them by several processes that know of each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        variables = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}",
            "JAX_NUM_PROCESSES": str(options.processes),
        }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_model(Path(folder), options.gigabytes)
        command = [sys.executable, __file__, "--read", folder, "--mesh", options.mesh]
        command += ["--processes", str(options.processes), "--turns", str(options.turns)]
        command += ["--gigabytes", str(options.gigabytes)]
        started = [
            subprocess.Popen(command, env=os.environ | variables | {"JAX_PROCESS_ID": str(number)})
            for number in range(options.processes)
        ]
        try:
            if any([process.wait() for process in started]):
                sys.exit(1)
        finally:
            for process in started:
                process.kill()


def read_together(options: argparse.Namespace, mesh: Any) -> None:
    """Read as one of several processes, and say how much this one grew."""
    import jax

    from manu_jax import parallel

    folder, (family, config) = Path(options.read), described(options.gigabytes)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    times, peaks, held = [], [], 0
    for turn in range(options.turns):
        parallel.wait_for_all(f"turn {turn}")
        seconds, grown, held = measured(lambda: read_model(folder, family, config, mesh))
        gc.collect()
        times.append(seconds)
        peaks.append(grown / held)
    print(
        f"process {jax.process_index()} of {options.processes}, mesh {options.mesh}: "
        f"{size / 1e9 / statistics.median(times):.2f} GB/s of {size / 1e9:.2f} GB; peak memory "
        f"{max(peaks):.2f} × the {held / 1e9:.2f} GB that its devices hold",
        flush=True,
    )


def described(gigabytes: float) -> tuple[Any, Any]:
    """Return the family and the config of a model of that size."""
    from manu_jax.models.families.registry import FAMILIES

    num_layers = max(round((gigabytes * 1e9 - OTHER_BYTES) / LAYER_BYTES), 1)
    family = FAMILIES["llama"]
    config = family.config_from_hf(
        {
            "model_type": "llama",
            "hidden_size": WIDTH,
            "intermediate_size": NEURONS,
            "num_hidden_layers": num_layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "vocab_size": TOKENS,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        },
        "benchmark",
    )
    return family, config


def write_model(folder: Path, gigabytes: float) -> tuple[Any, Any]:
    """Write weights and return their family and config. Every layer holds the same numbers."""
    from manu_jax.leaves import path_name
    from manu_jax.models.hf import export

    family, config = described(gigabytes)
    random = np.random.default_rng(0)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        is_stacked = path_name(path).rsplit("_", 1)[1].startswith("L")
        own = shape.shape[1:] if is_stacked else shape.shape
        numbers = random.standard_normal(own, np.float32).astype(ml_dtypes.bfloat16)
        return np.broadcast_to(numbers, shape.shape)

    import jax

    model = jax.tree_util.tree_map_with_path(leaf, family.abstract(config))
    export.write_tensors(export.export_tensors(model, family.weight_table(config)), folder)
    return family, config


def read_model(folder: Path, family: Any, config: Any, mesh: Any) -> Any:
    """Return the model on the mesh, as `manu_jax.load` reads it."""
    import jax.numpy as jnp

    from manu_jax.models import stored
    from manu_jax.models.hf import weights

    tensors, table = stored.read_tensors(folder, family, config)
    empty = family.abstract(config)
    return weights.fill(empty, tensors, table, dtype=jnp.bfloat16, mesh=mesh)


def read_files(files: Sequence[Path]) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {name: array for file in files for name, array in load_file(file).items()}


def measured(read: Callable[[], Any]) -> tuple[float, int, int]:
    """Return seconds, by how many bytes the process grew at most, and what is held at the end."""
    import jax

    ctypes.CDLL(None).malloc_trim(0)  # what earlier turns have given back
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    begun = time.perf_counter()
    found = read()
    seconds = time.perf_counter() - begun
    grown = memory("VmHWM") - before
    held = {}
    for leaf in jax.tree.leaves(found):
        if isinstance(leaf, jax.Array):
            for shard in leaf.addressable_shards:
                held[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
        else:
            held[id(leaf)] = leaf.nbytes
    return seconds, grown, sum(held.values())


def memory(name: str) -> int:
    """Return a number of bytes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def drop(files: Sequence[Path]) -> None:
    """Ask the system to forget the pages of files."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    main()
