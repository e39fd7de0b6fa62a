"""The recipes for pods and clusters: their settings are the config's, their extras and files exist.

What runs them (gcloud, kubectl, docker, sbatch) is not there to be tried.
"""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from manu_jax import run
from manu_jax.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = re.compile(r"(?:install[^\n]*?'|manu_jax|\s'\.|-e '?\.)\[([\w, -]+)\]")
STARTED = re.compile(r"(?:manu_jax\.run|\$IMAGE)\s+")  # by the module's name, or an image's
BASH = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
# What builds an image → what starts it in the same commands
STARTS = {
    "tpu.Dockerfile": ("docker run --rm --name manu --privileged --net=host", "kubectl apply"),
    "gpu.Dockerfile": ("srun --container-image=/shared/manu.sqsh",),
}
CLUSTER = (  # page or file → the commands there that start a run on several hosts
    ("docs/devices.md", 3),
    ("docker/jobset.yaml", 1),
)


def commands(path):
    """Return the arguments of the commands of a file that join other processes."""
    if path.suffix == ".yaml":
        (job,) = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"]
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        found = [container["args"]]
    else:
        lines = re.sub(r"\\\n", " ", path.read_text()).splitlines()
        found = [
            STARTED.split(line)[1].partition("||")[0].replace('"', "").split()
            for line in lines
            if STARTED.search(line) and "--output" in line and "mesh.distributed" in line
        ]
    return found


@pytest.mark.parametrize(("name", "count"), CLUSTER)
def test_commands_that_start_several_hosts_are_valid(name, count):
    found = commands(ROOT / name)
    assert len(found) == count
    for arguments in found:
        text = " ".join(arguments).replace("=/", " /")
        assert re.fullmatch(r"--config /\S+ --output /\S+ [^-].*", text), arguments
        settings = [one for one in arguments if "=" in one and not one.startswith("--")]
        config = load_config(ROOT / "configs" / "demo.yaml", settings)
        # With all devices on fsdp each token of an answer would gather all weights.
        assert config.mesh.distributed and config.mesh.choice == "auto"


@pytest.mark.parametrize("path", [*PAGES, *IMAGES], ids=lambda path: path.name)
def test_extras_that_are_installed_exist(path):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = path.read_text()
    found = {one.strip() for extras in EXTRAS.findall(text) for one in extras.split(",")}
    assert found <= {*known}, found - {*known}
    if path in IMAGES:
        assert "cloud" in found  # whose hosts share a bucket


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_is_made_of_files_that_exist_and_runs_the_command(path):
    lines = path.read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied), copied
    assert 'ENTRYPOINT ["python", "-m", "manu_jax.run"]' in lines
    assert run.__name__ == "manu_jax.run"


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_the_commands_that_build_an_image_start_it(path):
    text = (ROOT / "docs/devices.md").read_text()
    built = [block for block in BASH.findall(text) if f"build -f docker/{path.name} " in block]
    assert len(built) == len(STARTS[path.name])
    for block, start in zip(built, STARTS[path.name], strict=True):
        assert start in re.sub(r"\\\n\s*", "", block)
    assert f"](../docker/{path.name})" in text


def test_a_task_of_slurm_sees_all_gpus_of_its_node():
    """JAX takes one a task under SLURM unless it is told."""
    script = re.search(r"#!/bin/bash\n(.*?)END\n", (ROOT / "docs/devices.md").read_text(), re.S)
    assert script is not None
    count = int(re.search(r"--gpus-per-node=(\d+)", script[1])[1])
    assert "--ntasks-per-node=1 " in script[1]
    (told,) = re.findall(r"^export JAX_LOCAL_DEVICE_IDS=([\d,]+)$", script[1], re.M)
    assert [int(one) for one in told.split(",")] == list(range(count))
