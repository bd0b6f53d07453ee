"""Work that does not end: a device that hangs, or another process that is there and says nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

TICK = 0.5  # seconds


class Watchdog(threading.Thread):
    """Says so when one piece of work has been under way for too long, once.

    It counts its own ticks. A machine that slept, or a process that was stopped for a while and goes on, has no ticks in
    between, and is not taken for one that hangs.
    """

    def __init__(self, seconds: float, stuck: Callable[[], None]) -> None:
        """stuck() is called in this thread."""
        super().__init__(name="watchdog", daemon=True)
        self.seconds, self.stuck = seconds, stuck
        self.work = 0  # number of the piece of work under way, odd; even in between
        self.ended = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside is one piece of work."""
        self.work += 1
        try:
            yield
        finally:
            self.work += 1

    def end(self) -> None:
        """Nothing is watched any more."""
        self.ended.set()

    def run(self) -> None:
        """Look, tick after tick."""
        last, ticks = 0, 0
        while not self.ended.is_set():
            time.sleep(TICK)
            work = self.work
            ticks = ticks + 1 if work % 2 and work == last else 0
            last = work
            if ticks * TICK >= self.seconds:
                self.stuck()
                return
