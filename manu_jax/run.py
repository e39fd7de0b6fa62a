"""Run MANU from one config: `python -m manu_jax.run --config configs/demo.yaml`.

    config → data → model → importance → selection → masks → evaluation → report

Each stage reads and writes files in the run's folder, so a killed run goes on where it was, and one
stage can be run alone (`--only scores,masks`). The stages are the functions of stages.py, in order.
"""

import argparse
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manu_jax import faults, stores
from manu_jax.config import RunConfig, load_config
from manu_jax.folder import expand_path, explained
from manu_jax.owner import owned_folder
from manu_jax.types import ManuError

logger = logging.getLogger("manu_jax")

THREADS_A_DEVICE = 4
WAIT_SECONDS = 1.0  # between two looks at a folder in use


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 done, 1 a named problem, 130 or 143
    stopped by Ctrl-C or SIGTERM."""
    options = _parser().parse_intermixed_args(arguments)

    def action() -> None:
        config = load_config(options.config, options.overrides)
        if options.output:
            config = config.model_copy(update={"output": options.output})
        if options.plan is not None:
            if options.only is not None:
                raise ManuError("--plan with --only: a plan has all stages. Leave one of them out.")
            _plan(config, options.plan)
        else:
            run(config, only=options.only)

    return exit_status(action)


def exit_status(action: Callable[[], Any]) -> int:
    """Do a command's work, telling how far it is and how it fails; return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("jax", "orbax", "httpx", "httpx2", "fsspec", "botocore", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax and gcsfs log there, with a traceback, what they raise as well.
    for doubled in ("absl", "gcsfs"):
        logging.getLogger(doubled).setLevel(logging.CRITICAL)
    _give_threads()
    with faults.TracebackStopsAll(), faults.ctrl_c_stops():
        try:
            action()
        except (ManuError, OSError) as error:
            message = explained(error) if isinstance(error, OSError) else error
            return faults.stop_all(f"error: {message}", str(message))
        except KeyboardInterrupt:
            return faults.stop_all(faults.STOPPED, faults.STOPPED, 130)
        except faults.Stopped:
            logger.info(faults.STOPPED)  # the first process alone
            return faults.STOPPED_STATUS
    return 0


def _give_threads() -> None:
    """Have XLA make threads enough where a processor stands for several devices.

    It makes one a device. Collectives of one program that run at once then wait for each other for
    ever, as all threads are taken.
    """
    counts = [os.environ.get("JAX_NUM_CPU_DEVICES", "")]
    flags = os.environ.get("XLA_FLAGS", "")
    counts += re.findall(r"xla_force_host_platform_device_count=(\d+)", flags)
    most = max((int(count) for count in counts if count.isdigit()), default=1)
    if most > 1:
        os.environ.setdefault("NPROC", str(THREADS_A_DEVICE * most))


def run(config: RunConfig, only: Sequence[str] | None = None, *, waits: bool = False) -> Path:
    """Run the stages of `config` (all, or those named in `only`) and return the run's folder.

    They run in the program's order, each once, however `only` names them. Stages whose files stand,
    made from what the config says now, are not run again (keys.py). What can be checked before the
    first one is (preflight.py). waits: where another process is at work in the folder, until it has
    ended; one of several processes does not. Raises ManuError for an unknown stage's name, and for
    a folder in use.
    """
    start = time.monotonic()
    _prepare_jax(config)
    from manu_jax import keys, parallel, preflight
    from manu_jax.models.inputs import workers
    from manu_jax.planning import meshes
    from manu_jax.stages import STAGES

    unknown = [name for name in only or () if name not in STAGES]
    if unknown:
        raise ManuError(f"--only {','.join(unknown)}: no such stage; known: {', '.join(STAGES)}.")
    stages = [name for name in STAGES if not only or name in only]
    directory = expand_path(config.output)
    with contextlib.ExitStack() as stack:
        stack.enter_context(faults.sigterm_stops())
        stack.enter_context(stores.told(directory, but_files=True))
        stack.enter_context(workers.used(config.workers))
        keys.check_folder(config, directory)
        # One process owns the folder for all.
        folder = owned_folder(directory, _wait if waits and not config.mesh.distributed else None)
        parallel.on_first_process(lambda: stack.enter_context(folder))
        current = meshes.begin(config, directory)
        preflight.check(current, stages)
        parallel.on_first_process(lambda: keys.settle(directory, config))
        parallel.on_first_process(current.times)  # what is damaged is told before hours are spent
        meshes.write_choices(current)
        for name in stages:
            begun = time.monotonic()
            STAGES[name](current)
            parallel.wait_for_all(name)
            current.add_time(name, time.monotonic() - begun)
            logger.info("%s: done in %.1f s", name, time.monotonic() - begun)
            faults.stop_if_due()
    logger.info("%s: all done in %.1f s", directory, time.monotonic() - start)
    return directory


def _wait() -> None:
    """Wait before another look at a folder in use; Ctrl-C and SIGTERM stop the command here too."""
    faults.stop_if_due()
    time.sleep(WAIT_SECONDS)


def _plan(config: RunConfig, target: str) -> None:
    """Write the plan of a run (planning/plan.py); target: what it is planned for."""
    from manu_jax.planning import chips, plan

    found = chips.target_of(target)  # before JAX looks for devices
    alone = config.mesh.model_copy(update={"distributed": False})  # other processes are not there
    config = config.model_copy(update={"mesh": alone})
    _prepare_jax(config)
    plan.plan(config, found)


def _prepare_jax(config: RunConfig) -> None:
    """Join the other processes, if any; keep compiled programs between runs."""
    import jax

    from manu_jax import parallel

    if config.mesh.distributed:
        parallel.join()
    if not parallel.is_first_process():
        logger.setLevel(logging.WARNING)  # the first one tells how far all are
    if config.cache:
        folder = expand_path(config.cache) / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ManuError(
                f"cache {config.cache}: {error.strerror}. Give another folder, or cache=null."
            ) from error
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m manu_jax.run",
        description="Make a multimodal language model forget, and prove what it forgot and kept.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file of configs/")
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default: the config's)")
    parser.add_argument(
        "--only",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="STAGE[,STAGE]",
        help="run these stages alone, on what earlier ones left in the run's folder",
    )
    parser.add_argument(
        "--plan",
        metavar="TARGET",
        help="run nothing: compile every step from shapes, and say what fits, moves and takes how "
        "long on tpu=v5e:4x4, devices=8 or gpu=h100:8",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="replace a value of the config"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
