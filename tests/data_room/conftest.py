"""A small benchmark, written once, and the tools to damage copies of it."""

import shutil

import hypothesis
import pytest
from pyarrow import Table, parquet

from manu_jax.data import mllmu, synthetic

# A shared machine pauses: a slow example is not a fault.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

NUM_PEOPLE, NUM_CELEBRITIES, NUM_GENERAL = 10, 3, 8


@pytest.fixture(scope="session")
def benchmark_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "synthetic"
    return synthetic.write(
        path,
        num_people=NUM_PEOPLE,
        num_celebrities=NUM_CELEBRITIES,
        num_general=NUM_GENERAL,
        seed=3,
    )


@pytest.fixture(scope="session")
def benchmark(benchmark_path):
    return mllmu.load_benchmark(benchmark_path, forget=10)


@pytest.fixture
def copy(benchmark_path, tmp_path):
    """A benchmark folder of the test's own, to damage."""
    return shutil.copytree(benchmark_path, tmp_path / "copy")


@pytest.fixture
def change():
    """change(folder, edit): let `edit` change the rows of a folder's first file."""

    def change_rows(folder, edit):
        file = sorted(folder.glob("*.parquet"))[0]
        table = parquet.read_table(file)
        rows = table.to_pylist()
        changed = edit(rows)
        rows = rows if changed is None else changed
        parquet.write_table(Table.from_pylist(rows, table.schema), file)

    return change_rows
