"""Tiny LLaVA folders, each built once a session."""

import llava_cases
import pytest


@pytest.fixture(scope="session")
def words():
    return llava_cases.tokenizer()


@pytest.fixture(scope="session")
def case(tmp_path_factory, words):
    """Return a function: a case's name → (folder, PyTorch model)."""
    made = {}

    def build(name: str = "all-key-heads"):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = (folder, llava_cases.write_case(name, folder, words))
        return made[name]

    return build
