"""Tiny LLaVA folders, each built once a session; the converters, which are scripts."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "convert"))


# What needs PyTorch is imported by the fixtures: without it, tests that do without still run.


@pytest.fixture(scope="session")
def words():
    import cases

    return cases.tokenizer()


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    """Return a function: a case's name → (folder, PyTorch model)."""
    from llava_cases import cases as llava

    made = {}

    def build(name: str = "all-key-heads"):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = (folder, llava.write_case(name, folder))
        return made[name]

    return build
