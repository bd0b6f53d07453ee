"""Ctrl-C at any moment: one line and exit code 130.

Python turns it into a KeyboardInterrupt between two steps of the main thread: after a compilation that takes a minute, in
the middle of an import that takes it for a missing module, in a destructor that reports it as ignored, or inside a compiled
program, and then Python crashes at its end (jax 0.10.2). So nothing is raised here. The system's handler writes to a socket
(signal.set_wakeup_fd), and a thread that reads from it ends the process, whatever the main thread is doing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    import threading

INTERRUPTED = 130  # the exit code after Ctrl-C: what a shell shows for SIGINT
PATIENCE = 1.0  # seconds for what was stopped to end by itself, with all that it has to say
AGAIN = "stopping after this step; Ctrl-C again leaves"


def leave_at_once() -> None:
    """From now on, until this process has ended, Ctrl-C ends it."""
    signal.signal(signal.SIGINT, lambda *_: leave())  # while the thread is being made
    _, outbox = listener(0.0, insist=True)
    signal.set_wakeup_fd(outbox.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda *_: None)


@contextmanager
def noted(*, insist: bool = True) -> Iterator[list[int]]:
    """Inside, Ctrl-C is put on the list that this yields, for the block to look at and end.

    Where it does not end soon, as in a compilation, or at a second Ctrl-C, the process does. insist False: a block that
    takes its time is waited for, and only one Ctrl-C more, after a line that says so, ends the process.
    """
    interrupts: list[int] = []
    thread, outbox = listener(PATIENCE, insist)
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    wakeup = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    try:
        yield interrupts
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, handler)
        outbox.close()
        thread.join()


def listener(patience: float, insist: bool) -> tuple[threading.Thread, socket.socket]:
    """A thread that waits for Ctrl-C, and the socket where the system is to say so; closing it ends the thread."""
    import socket
    import threading

    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    thread = threading.Thread(target=listen, args=(inbox, patience, insist), daemon=True)
    thread.start()
    return thread, outbox


def listen(inbox: socket.socket, patience: float, insist: bool) -> None:
    """Wait for Ctrl-C, then for the other end to be closed or for the moment to leave."""
    with inbox:
        count = pressed(inbox, None)
        if not count:
            return
        if patience and not (insist and count > 1):
            until = time.monotonic() + patience
            more = pressed(inbox, patience)
            while more and not insist:
                more = pressed(inbox, max(until - time.monotonic(), 0.001))
            if more == 0:
                return
            if not insist:
                say(AGAIN)
                if not pressed(inbox, None):
                    return
        leave()


def pressed(inbox: socket.socket, seconds: float | None) -> int | None:
    """How often Ctrl-C was pressed, as soon as it was; 0 where the other end is closed, None where the time is over."""
    inbox.settimeout(seconds)
    while True:
        try:
            numbers = inbox.recv(64)
        except TimeoutError:
            return None
        if not numbers or signal.SIGINT in numbers:  # the numbers of other signals come here too
            return numbers.count(signal.SIGINT)


def leave() -> None:
    """End this process now: nothing else of it runs any more."""
    say("interrupted")
    os._exit(INTERRUPTED)


def say(message: str) -> None:
    """One line on standard error, past Python's own buffers: another thread may be holding them."""
    line = f"nanollm: {message}\n"
    if os.isatty(2):
        # without what progress.py shows, below what else stands in the line, and with the cursor that a bar hides
        line = f"\x1b[J\n\x1b[?25h{line}"
    try:
        os.write(2, line.encode())
    except OSError:  # closed, or nobody reads: there is no one to tell
        return
