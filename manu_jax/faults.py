"""A fault on one of several processes stops them all, within seconds and with its message.

A process that fails publishes why under a key that all of them see, and every process has a thread
that looks for that key. So nobody waits in a collective for one who is gone. The first process
holds the keys: it goes last. Without several processes nothing here does anything.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

FAULT = "manu_jax/fault"  # the message of the process that failed first
SEEN = "manu_jax/seen/{}"  # by number: the processes that are about to end
LOOK_SECONDS = 1.0
SEEN_SECONDS = 5.0  # how long a process that ends waits for the others to see why
LAST_SECONDS = 0.5  # how much longer the first process stays, who holds the keys
STATUS = 1


class Watch:
    """What one process of several looks at and tells.

    store: keys and texts that all processes see, the client of `jax.distributed`. number: which of
    `count` this process is.
    """

    def __init__(self, store: Any, number: int, count: int):
        self.store, self.number, self.count = store, number, count
        self._is_ending = threading.Lock()  # taken by the one thread that ends the process
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="faults", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more: the process ends well."""
        self._is_over.set()
        self._thread.join(2 * LOOK_SECONDS)

    def tell(self, line: str, message: str, status: int) -> NoReturn:
        """End all processes: this one prints `line`, the others tell `message`."""
        if not self._is_ending.acquire(blocking=False):
            threading.Event().wait()  # the other thread ends the process
        print(line, file=sys.stderr, flush=True)
        self._set(FAULT, f"process {self.number}: {message}")
        self._end(status)

    def wait_for_cause(self) -> None:
        """Give the thread time to see a fault of another process, and then to end this one.

        A collective may fail because another process has ended, a moment before its fault is seen.
        """
        time.sleep(2 * LOOK_SECONDS)

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            message = self._get(FAULT)
            if message is not None and self._is_ending.acquire(blocking=False):
                print(f"error: {message}", file=sys.stderr, flush=True)
                self._end(STATUS)

    def _end(self, status: int) -> NoReturn:
        """End when all have seen the fault, or do not answer.

        That is without the shutdown of `jax.distributed`, which waits for those that hang.
        """
        self._set(SEEN.format(self.number), "1")
        end = time.monotonic() + SEEN_SECONDS
        everyone = [SEEN.format(number) for number in range(self.count)]
        while time.monotonic() < end and not all(self._get(key) for key in everyone):
            time.sleep(0.1)
        if self.number == 0:
            time.sleep(LAST_SECONDS)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    def _set(self, key: str, value: str) -> None:
        # The key stands already, or the first process is gone: there is nobody to tell.
        with contextlib.suppress(RuntimeError, ValueError):
            self.store.key_value_set(key, value)

    def _get(self, key: str) -> str | None:
        try:
            return self.store.key_value_try_get(key)
        except (RuntimeError, ValueError):  # not there
            return None


_watch: Watch | None = None


class TracebackStopsAll(contextlib.AbstractContextManager):
    """Let an error that nobody expected stop the other processes too. One process: do nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and _watch is not None:
            _watch.wait_for_cause()
            line = "".join(traceback.format_exception(error)).rstrip()
            _watch.tell(line, f"{kind.__name__}: {error}", STATUS)


def watch(store: Any, number: int, count: int) -> None:
    """Begin to look for faults of the other processes, as process `number` of `count`."""
    global _watch
    if _watch is None and count > 1:
        _watch = Watch(store, number, count)
        atexit.register(_watch.stop)


def stop_all(line: str, message: str, status: int = STATUS) -> int:
    """Print `line` and return `status`; with several processes end all, and the others tell
    `message`."""
    if _watch is not None:
        _watch.tell(line, message, status)
    print(line, file=sys.stderr)
    return status
