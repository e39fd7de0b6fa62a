"""Eight CPU devices, exact matmuls, no silent rank promotion (warnings: pyproject.toml)."""

import atexit
import gc
import os
import shutil
import tempfile

from compiler import LEAST_EFFORT

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Programs that one worker compiles serve the other, and the commands that tests start. With a limit
# on its size the folder is written under a lock.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="manu_jax-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**31)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} {LEAST_EFFORT} --xla_force_host_platform_device_count=8"
).strip()

import jax
import pytest

from manu_jax import run

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish(session):
    """Spare the collector what stays for good: it takes a tenth of the suite's time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


@pytest.fixture
def error_of(capsys):
    """Return a function that runs the command, which has to fail, and gives its one message."""

    def message_of(*arguments):
        assert run.main([str(argument) for argument in arguments]) == 1
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert len([line for line in message.splitlines() if line.startswith("error: ")]) == 1
        return message

    return message_of
