"""Named arrays come back as they were written, or not at all."""

import numpy as np
import pytest
import safetensors.numpy

from manu_jax import arrays
from manu_jax.types import ManuError

ARRAYS = {"text": np.arange(12, dtype=np.float32).reshape(3, 4), "vision": np.eye(2, dtype=bool)}
METADATA = {"made_from": '{"alpha": 0.05}', "kind": "sums"}


def test_arrays_and_what_they_were_made_from_come_back(tmp_path):
    arrays.write_arrays(tmp_path / "a", "scores", ARRAYS, metadata=METADATA)
    found, metadata = arrays.read_arrays(tmp_path / "a", "scores")
    assert metadata.items() > METADATA.items()
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


@pytest.mark.parametrize(("old", "new"), [(b"0.05", b"0.06"), (b"sums", b"rows")])
def test_damage_to_what_they_were_made_from_is_found(tmp_path, old, new):
    arrays.write_arrays(tmp_path / "a", "scores", ARRAYS, metadata=METADATA)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(old, new))
    with pytest.raises(ManuError, match="scores .*a: damaged, its contents do not match its hash"):
        arrays.read_arrays(tmp_path / "a", "scores")


def test_a_file_of_before_the_hash_covered_the_metadata_is_read(tmp_path):
    marks = {"format": arrays.PREFIX + "scores", "sha256": arrays._hash(ARRAYS, {})}
    (tmp_path / "a").write_bytes(safetensors.numpy.save(ARRAYS, METADATA | marks))
    found, _ = arrays.read_arrays(tmp_path / "a", "scores")
    assert np.array_equal(found["text"], ARRAYS["text"])
