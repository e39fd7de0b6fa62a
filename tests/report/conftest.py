"""A made-up run folder that tests of the report share; those that change it write their own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_run  # noqa: E402


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return fake_run.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def write_run():
    return fake_run.write_run
