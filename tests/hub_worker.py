"""One process that names things on the hub: `hub_worker.py FILE` answers each request of a list.

FILE: JSON, [[what, {settings}], …]; what it prints last is JSON, a list of {"value"} or {"error"}.
`huggingface_hub` reads its environment once, so each environment needs a process.
"""

import json
import os
import sys
from pathlib import Path

from manu_jax import hub, parallel
from manu_jax.config import validate_config
from manu_jax.folder import FileHashes
from manu_jax.types import ManuError


def local(name, kind="model", patterns=("*",)):
    """The folder, and the names of all that is in it."""
    folder = hub.local(name, kind, patterns)
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return [str(folder), sorted(files)]


def fingerprint(path, kind="model"):
    return hub.fingerprint(path, kind, FileHashes())


def load(name):
    """The hash of the weights of a model."""
    from manu_jax.fingerprint import weights_hash
    from manu_jax.models.loaded import load

    return weights_hash(load(name).model)


def benchmark(data):
    """How many people each set of a run's benchmark has, and what the run is made from."""
    from manu_jax import parts
    from manu_jax.context import Run

    config = validate_config({"data": data, "train": {"steps": 1}}, "worker")
    run = Run.begin(config, Path("nowhere"))
    sizes = {name: len(people) for name, people in run.whole_benchmark.sets.items()}
    return [sizes, parts.made_from(config, FileHashes())]


def check_push(name):
    return hub.check_push(name)


def push(name, run):
    """Send what a run's folder holds, as its stage does."""
    from manu_jax.context import Run
    from manu_jax.report.card import make_push

    values = {"push": name, "train": {"steps": 1}, "output": run}
    make_push(Run.begin(validate_config(values, "worker"), Path(run)))
    return json.loads((Path(run) / "pushed.json").read_text())


REQUESTS = {one.__name__: one for one in (local, fingerprint, load, benchmark, check_push, push)}

if __name__ == "__main__":
    if "JAX_PROCESS_ID" in os.environ:
        parallel.join()
    answers = []
    for what, settings in json.loads(Path(sys.argv[1]).read_text()):
        try:
            answers.append({"value": REQUESTS[what](**settings)})
        except ManuError as error:
            answers.append({"error": str(error)})
    print(json.dumps(answers))
