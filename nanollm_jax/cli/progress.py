"""What a person who waits sees, where standard error is a terminal: how far a long run is, how long a compilation takes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
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


@contextmanager
def bar(total: int | None, done: int) -> Iterator[Callable[[int], None]]:
    """Inside, a bar of how many of `total` lines, where that is known, have an answer: `done` from before, and one more
    whenever what this yields is called with how many tokens all of them have.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    begun = time.monotonic()
    rate = TextColumn("{task.fields[rate]}")
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("lines"), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, completed=done, rate="")

        def advance(tokens: int) -> None:
            progress.update(task, advance=1, rate=f"{tokens / (time.monotonic() - begun):.0f} tok/s")

        yield advance


def write(text: str) -> None:
    """Text to standard error, now."""
    print(text, end="", file=sys.stderr, flush=True)
