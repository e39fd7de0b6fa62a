"""Finds the tools, which are scripts and no package, and a tiny model for them."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tools" / "convert"))
sys.path.insert(0, str(ROOT / "tests" / "models"))


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A Hugging Face folder."""
    from llava_cases import cases

    folder = tmp_path_factory.mktemp("source")
    cases.write_case("one-key-head-tied", folder)
    return folder
