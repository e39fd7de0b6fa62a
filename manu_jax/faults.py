"""A fault on one of several processes stops them all, within seconds and with its message.

A process that fails publishes why under a key that all of them see, and every process has a thread
that looks for that key. So nobody waits in a collective for one who is gone. The first process
holds the keys: it goes last. Without several processes there is nobody to tell.

SIGTERM, by which clouds and batch systems announce that they will take a machine, stops a command
where it can go on later: long loops ask `stop_is_due` after each step, and save. It is enough that
one of several processes gets the signal; they agree on the step after which all stop.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

FAULT = "manu_jax/fault"  # the message of the process that failed first
SEEN = "manu_jax/seen/{}"  # by number: the processes that are about to end
ALIVE = "manu_jax/alive/{}"  # by number: how often a process has looked
GONE_SECONDS = 20.0  # after so long without a sign of it a process has ended
LOOK_SECONDS = 1.0
SEEN_SECONDS = 5.0  # how long a process that ends waits for the others to see why
LAST_SECONDS = 0.5  # how much longer the first process stays, who holds the keys
ANSWER_SECONDS = 2.0  # how long the first process may take to answer before it counts as gone
STATUS = 1
NOT_THERE = "NOT_FOUND"  # how the store says so
AGAIN = "Give the same command again to go on from here."
STOPPED = f"stopped. {AGAIN}"
STOPPED_STATUS = 128 + signal.SIGTERM


class Stopped(Exception):
    """SIGTERM has come, and what was being done is saved."""


class Watch:
    """What one process of several looks at and tells.

    store: keys and texts that all processes see, the client of `jax.distributed`. number: which of
    `count` this process is. is_time_to_stop: given how often it was asked, whether all have asked
    as often since one of them got SIGTERM.
    """

    def __init__(self, store: Any, number: int, count: int, is_time_to_stop: Callable[[int], bool]):
        self.store, self.number, self.count = store, number, count
        self.is_time_to_stop = is_time_to_stop
        self._looks = 0
        # By number: the last sign of another process, and when it was new.
        self._signs: dict[int, tuple[str | None, float]] = {}
        self._answered = time.monotonic()  # when the store last did
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

    def wait_for_cause(self, *, is_foreign: bool = False) -> None:
        """Give the thread time to see a fault of another process, and then to end this one.

        A collective may fail because another process has ended, a moment before its fault is seen.
        is_foreign: the error came from a collective, perhaps with a process that was killed.
        """
        time.sleep(2 * LOOK_SECONDS + (GONE_SECONDS if is_foreign else 0))

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            message = self._get(FAULT)
            if message is not None and self._is_ending.acquire(blocking=False):
                print(f"error: {message}", file=sys.stderr, flush=True)
                self._end(STATUS)
            self._looks += 1
            self._set(ALIVE.format(self.number), str(self._looks))
            gone = self._gone()
            if gone is not None and self._is_ending.acquire(blocking=False):
                message = f"process {gone} is gone, and so all stop. {AGAIN}"
                print(f"error: {message}", file=sys.stderr, flush=True)
                self._set(FAULT, message)
                self._end(STATUS, without=gone)

    def _gone(self) -> int | None:
        """Return a process that has ended without a word, or None.

        The first one looks for all others, these for the first, who holds the keys.
        """
        now = time.monotonic()
        if self.number:
            return 0 if now - self._answered > GONE_SECONDS else None
        for number in range(1, self.count):
            sign = self._get(ALIVE.format(number))
            before, when = self._signs.get(number, (None, now))
            if sign != before or sign is None:
                self._signs[number] = sign, now
            elif now - when > GONE_SECONDS:
                return number
        return None

    def _end(self, status: int, without: int | None = None) -> NoReturn:
        """End when all have seen the fault, or do not answer, or are known to be gone.

        That is without the shutdown of `jax.distributed`, which waits for those that hang.
        """
        self._set(SEEN.format(self.number), "1")
        end = time.monotonic() + SEEN_SECONDS
        everyone = [SEEN.format(number) for number in range(self.count) if number != without]
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
            self.store.key_value_set(key, value, allow_overwrite=key != FAULT)

    def _get(self, key: str) -> str | None:
        try:
            value = self.store.key_value_try_get(key)
        except (RuntimeError, ValueError) as error:  # not there, or nobody answers
            if NOT_THERE in str(error):
                self._answered = time.monotonic()
            return None
        self._answered = time.monotonic()
        return value


_watch: Watch | None = None
_on_abort: Any = None  # what C calls has to stay
_times_asked = 0  # the same on all processes, which take the same way
_is_due = False
_is_interrupted = False  # by Ctrl-C


class TracebackStopsAll(contextlib.AbstractContextManager):
    """Let an error that nobody expected stop the other processes too. One process: do nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and _watch is not None:
            _watch.wait_for_cause(is_foreign=kind.__name__ == "JaxRuntimeError")
            line = "".join(traceback.format_exception(error)).rstrip()
            _watch.tell(line, f"{kind.__name__}: {error}", STATUS)


def watch(state: Any, *, is_time_to_stop: Callable[[int], bool]) -> None:
    """Begin to look for faults of the other processes, where there are any.

    state: that of `jax.distributed`: this process's number, how many there are, the client, and
    the address of the first one. is_time_to_stop: as of `Watch`.
    """
    global _watch
    if _watch is None and state.num_processes > 1:
        _watch = Watch(state.client, state.process_id, state.num_processes, is_time_to_stop)
        atexit.register(_watch.stop)
        if state.process_id:
            _explain_aborts(state.coordinator_address)


def _explain_aborts(address: str) -> None:
    """Have an abort that comes of the end of the first process say so in one line, the last.

    Where that process no longer answers, JAX's client aborts this one at once, from a thread of its
    own and with a page of words. It would call a function in their place, but not one of Python's
    (std::bad_cast, jaxlib 0.10.2). Any other abort stays what it is.
    """

    def explain(_: int) -> None:
        if not _answers(address):
            os.write(2, f"error: process 0 is gone, and so all stop. {AGAIN}\n".encode())
            os._exit(STATUS)

    global _on_abort
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _on_abort = kind(explain)
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = (ctypes.c_int, kind), ctypes.c_void_p
    install(signal.SIGABRT, _on_abort)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def stop_all(line: str, message: str, status: int = STATUS) -> int:
    """Print `line` and return `status`; with several processes end all, and the others tell
    `message`."""
    if _watch is not None:
        _watch.tell(line, message, status)
    print(line, file=sys.stderr)
    return status


@contextlib.contextmanager
def sigterm_stops() -> Iterator[None]:
    """Let SIGTERM stop what is done inside at its next step, in place of ending the process.

    With several processes `jax.distributed` takes the signal.
    """
    global _is_due

    def handle(*_: object) -> None:
        global _is_due
        _is_due = True

    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _is_due = False


@contextlib.contextmanager
def ctrl_c_stops() -> Iterator[None]:
    """Let Ctrl-C stop what is done inside, at its next step at the latest.

    Python drops the KeyboardInterrupt where it comes in a callback of the garbage collector, and
    JAX has one.
    """
    global _is_interrupted

    def handle(*given: Any) -> None:
        global _is_interrupted
        _is_interrupted = True
        signal.default_int_handler(*given)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _is_interrupted = False


def stop_is_due() -> bool:
    """Whether to save and stop now; all processes ask together, and get the same answer."""
    global _is_due, _times_asked
    if _watch is not None and not _is_due:
        _times_asked += 1
        _is_due = _watch.is_time_to_stop(_times_asked)
    return _is_due or (_is_interrupted and _watch is None)


def stop_if_due() -> None:
    """Raise Stopped where SIGTERM has come to one of the processes; all ask together.

    Where this one was interrupted, KeyboardInterrupt.
    """
    if _is_interrupted:
        raise KeyboardInterrupt
    if stop_is_due():
        raise Stopped
