"""Progress of long work: a bar on a terminal, a plain log line now and then elsewhere."""

import logging
import sys
import time

import rich.console
import rich.progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """One piece of work of `total` steps, `done` of them from an earlier run."""

    def __init__(self, description: str, total: int, done: int = 0):
        self.description, self.total, self.done = description, total, done
        self._first, self._start = done, time.monotonic()
        self._last_line = self._start
        self._bar = None
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                console=rich.console.Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more as done; `note` is shown beside them ("loss 1.234")."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = (now - self._start) / max(self.done - self._first, 1)
            left = rate * (self.total - self.done)
            tail = f", {note}" if note else ""
            logger.info(
                "%s: %d of %d, %.0f s left%s", self.description, self.done, self.total, left, tail
            )
