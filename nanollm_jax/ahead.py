"""Files read before they are asked for: those that the last process which began like this one asked for.

A list beside the files names them, in the order in which they were asked for. It is a hint: what is asked for is decided by
who asks, and a file that nobody wants was read in vain, by a thread that nobody waited for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

MOST = 128  # files that a list names

Read = TypeVar("Read")


class Ahead(Generic[Read]):
    """What was begun to be read, and the list of what this process asks for."""

    def __init__(self, read: Callable[[Path], Read | None], threads: int) -> None:
        """read: what threads, so many of them, do with a file."""
        self.read, self.threads = read, threads
        self.begun: dict[Path, Future[Read | None]] = {}
        self.list: Path | None = None
        self.asked = 0

    def begin(self, names: Path) -> None:
        """Read what a list names, in threads. One that is not there is made; of a process that has asked already nothing."""
        if self.asked:
            return
        self.list = names
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = [name for name in names.read_text().split("\n")[:MOST] if name and name == os.path.basename(name)]
            pool = ThreadPoolExecutor(self.threads)
            self.begun |= {path: pool.submit(self.read_on, path) for path in map(names.with_name, found)}
            pool.shutdown(wait=False)  # its threads end when all is read

    def read_on(self, path: Path) -> Read | None:
        """Read one, unless the process is at its end."""
        return self.read(path) if threading.main_thread().is_alive() else None

    def take(self, path: Path) -> Read | None:
        """Ask for a file: what was read of it ahead, None where whoever asks has to read it."""
        if self.list is not None and self.asked < MOST:
            with contextlib.suppress(OSError), self.list.open("a" if self.asked else "w") as names:
                names.write(f"{path.name}\n")
        self.asked += 1
        reading = self.begun.pop(path, None)
        return None if reading is None or reading.cancel() else reading.result()
