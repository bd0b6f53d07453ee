"""What a person sees while a program is compiled: how long it has taken so far, on standard error where that is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AFTER, EVERY = 0.5, 0.2  # seconds: what is over before is not worth a word; how often the number changes
SAVE, ERASE, RESTORE = "\x1b7", "\x1b[J", "\x1b8"  # of a terminal's cursor, and of all that is behind it


@contextmanager
def compiling_shown() -> Iterator[None]:
    """Inside, "compiling ... 12 s" stands behind the cursor while JAX compiles, and is gone afterwards.

    The cursor stays where it is, so what else is written, an answer above all, goes on as if nothing had been there.
    """
    if not sys.stderr.isatty():
        yield
        return
    from jax import monitoring

    begun: list[float] = []  # when the compilations that now run began
    ended = threading.Event()

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("/jaxpr_to_mlir_module_duration"):  # the last thing before
            begun.append(time.monotonic())
        elif event.endswith("/backend_compile_duration") and begun and time.monotonic() - begun.pop() > AFTER:
            write(ERASE)

    def tick() -> None:
        while not ended.wait(EVERY):
            since = begun[-1:]
            if since and (seconds := time.monotonic() - since[0]) > AFTER:
                write(f"{SAVE}{ERASE} compiling ... {seconds:.0f} s{RESTORE}")
                if not begun:  # it ended in between
                    write(ERASE)

    monitoring.register_event_duration_secs_listener(note)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        monitoring.unregister_event_duration_listener(note)


def write(text: str) -> None:
    """Text to standard error, now."""
    print(text, end="", file=sys.stderr, flush=True)
