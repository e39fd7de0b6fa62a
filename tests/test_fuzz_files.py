"""Files damaged at random: a ManuError or the right result, no traceback, no other number.

Every input follows from fuzzing.SEED, the file and its number, which a failure names. Some of them
are tried always, ten thousand in `pytest -m slow`.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import VALUES, counted, generator, harmed, named

from manu_jax import arrays, checkpoint
from manu_jax.leaves import shapes
from manu_jax.models import stored
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.hf import weights

sys.path.insert(0, str(Path(__file__).parent / "models"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a tiny LLaVA."""
    from llava_cases import cases

    path = tmp_path_factory.mktemp("fuzz")
    cases.write_case("one-key-head-tied", path)
    return path


@counted(10, 1500)
def test_headers_of_weights(folder, tmp_path, numbers):
    family, config, _ = stored.read_config(folder)
    model = family.abstract(config)
    content = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")

    def read(path):
        tensors, table = stored.read_tensors(path, family, config)
        weights.compare(tensors, table, shapes(model)).refuse(str(path))
        kind = weights.stored_dtype(tensors)
        return weights.fill(model, tensors, table, dtype=kind, mesh=None)

    whole = jax.tree.leaves(read(folder))
    for number in numbers:
        (tmp_path / "model.safetensors").write_bytes(
            harmed(content, generator("header", number), header)
        )
        with named("header", number):
            found = jax.tree.leaves(read(tmp_path))
            assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))


@counted(20, 1000)
def test_bytes_of_the_config_and_of_the_index(folder, tmp_path, numbers):
    content = (folder / "config.json").read_bytes()
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    for name in ("one", "two"):
        shutil.copy(folder / "model.safetensors", tmp_path / f"{name}.safetensors")
    for number in numbers:
        (tmp_path / "config.json").write_bytes(harmed(content, generator("config", number)))
        with named("config", number):
            family, config, _ = stored.read_config(tmp_path)
            if number % 10 == 0:
                family.abstract(config)
        (tmp_path / "model.safetensors.index.json").write_bytes(
            harmed(index, generator("index", number))
        )
        with named("index", number):
            weights.weight_files(tmp_path)


@counted(60, 4000)
def test_values_of_the_config_of_every_family(numbers):
    released = sorted((Path(__file__).parent / "data").glob("*.json"))
    configs = [json.loads(path.read_text()) for path in released]
    configs = [values for values in configs if values.get("model_type") in FAMILIES]
    assert {values["model_type"] for values in configs} == set(FAMILIES)
    for number in numbers:
        random = generator("values", number)
        values = json.loads(json.dumps(configs[random.integers(len(configs))]))
        sections = [values] + [part for part in values.values() if isinstance(part, dict)]
        for _ in range(random.integers(1, 3)):
            section = sections[random.integers(len(sections))]
            name = sorted(section)[random.integers(len(section))]
            if name != "model_type" or section is not values:
                section[name] = VALUES[random.integers(len(VALUES))]
        family = FAMILIES[values["model_type"]]
        with named("values", number):
            config = family.config_from_hf(values, "config.json")
            if number % 20 == 0:
                family.abstract(config)


@counted(40, 2500)
def test_masks_statistics_and_scores(tmp_path, numbers):
    random = np.random.default_rng(0)
    held = {"text": random.random((3, 20)) < 0.5, "vision": random.random((2, 9)).astype("f4")}
    metadata = {"made_from": json.dumps({"alpha": 0.05, "versions": {"jax": "0.9"}})}
    arrays.write_arrays(tmp_path / "whole", "mask", held, metadata=metadata)
    content = (tmp_path / "whole").read_bytes()
    for number in numbers:
        (tmp_path / "mask").write_bytes(harmed(content, generator("mask", number)))
        with named("mask", number):
            found, made_from = arrays.read_arrays(tmp_path / "mask", "mask")
            assert made_from["made_from"] == metadata["made_from"]
            assert set(found) == set(held)
            for name, array in held.items():
                assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


@counted(5, 800)
def test_orbax_folders(tmp_path, numbers):
    tree = {"up_LDF": jax.random.normal(jax.random.key(0), (2, 20, 30)), "step": jnp.asarray(7)}
    checkpoint.save(tmp_path / "whole", tree)
    files = sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size]
    for number in numbers:
        random = generator("orbax", number)
        file = files[random.integers(len(files))]
        whole = file.read_bytes()
        file.write_bytes(harmed(whole, random))
        with named(f"orbax, {file.name}", number):
            found = checkpoint.load(tmp_path / "whole", tree)
            assert np.array_equal(found["up_LDF"], tree["up_LDF"]) and found["step"] == 7
        file.write_bytes(whole)
