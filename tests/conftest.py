"""Eight CPU devices, exact matmuls, no silent rank promotion (warnings: pyproject.toml)."""

import atexit
import contextlib
import gc
import os
import shutil
import tempfile

import pytest
from compiler import LEAST_EFFORT

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's threads: as many as devices are too few for collectives that run at once (manu_jax/run.py).
os.environ.setdefault("NPROC", "32")
# PyTorch's threads wait for each other longer than they compute: they took two thirds of the time
# of a tiny model. Each worker has a core of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
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

# Whole runs first, so that no worker is left with one of them at the end. xdist would begin with
# the files that hold most tests.
FIRST = ("test_run.py", "test_run_methods.py", "test_families.py")


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # of xdist: this process starts the workers, and runs no tests
    import jax

    from manu_jax import parallel

    parallel.IS_STRICT = True
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    gc.disable()  # until all is imported: next to nothing of that is garbage


# The extra `test` brings PyTorch for Python 3.11 alone.
WITHOUT_TORCH = "PyTorch is not installed: python -m pip install torch"
NO_TORCH = "No module named 'torch'"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skip a file that needs PyTorch where there is none."""
    report = yield
    if report.failed and NO_TORCH in str(report.longrepr):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, WITHOUT_TORCH)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    with _skipping():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    with _skipping():
        return (yield)


@contextlib.contextmanager
def _skipping():
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name == "torch":
            pytest.skip(WITHOUT_TORCH)
        raise


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish(session):
    """Spare the collector what stays for good: it takes a tenth of the suite's time otherwise."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    gc.enable()


def pytest_sessionfinish(session):
    """Look for leaks once; pytest would do it five times after this, and Python at its exit."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def error_of(capsys):
    """Return a function that runs the command, which has to fail, and gives its one message."""
    from manu_jax import run

    def message_of(*arguments):
        assert run.main([str(argument) for argument in arguments]) == 1
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert len([line for line in message.splitlines() if line.startswith("error: ")]) == 1
        return message

    return message_of
