"""One server of several processes: process 0 has HTTP and hands the others each turn, one line of JSON over TCP.

Only process 0 looks at a clock, a socket of a client or a random number; the others do what they read. Nothing is sent while
nobody asks for anything. Whoever is lost is noticed at once where a connection breaks, and within meeting.LOST seconds where a
machine is silent; then all the others end, since none of them could go on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType, MappingProxyType
from typing import NoReturn

from nanollm_jax.engine.engine import Engine
from nanollm_jax.serve.turns import Turn, cancel, noted, ready, under_way
from nanollm_jax.serve.watchdog import Watchdog
from nanollm_jax.serve.wire import decode, encode

log = logging.getLogger("nanollm.serve")
ENDING = 3.0  # seconds for what is under way, when the server ends
STUCK = 300.0  # seconds of a step that waits for another process, where nobody says
FAILED = 1


def limit_of(seconds: float | None, processes: int) -> float:
    """How long a step may take before it is taken for stuck: what was said, else no end where nobody waits for others."""
    return STUCK if seconds is None and processes > 1 else math.inf if seconds is None else seconds


class Lost(Exception):
    """A process of the run is gone, or does something else than the others."""


def gone(number: int) -> Lost:
    """The same words, whoever notices it first: who listens to that process, or who writes to it."""
    return Lost(f"process {number} of this run ended, or cannot be reached")


class Followers:
    """The other processes, as process 0 knows them; none, where it is alone."""

    def __init__(self, links: Mapping[int, socket.socket] = MappingProxyType({})) -> None:
        """links: the number of each process, and its connection."""
        self.links = dict(links)
        self.watchers: list[threading.Thread] = []
        self.ending = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self.links)

    def watch(self, lost: Callable[[BaseException], None]) -> None:
        """Call lost(error), in another thread, when the first of them is gone."""

        def listen_to(number: int, link: socket.socket) -> None:
            with contextlib.suppress(OSError):
                link.recv(1)  # they say nothing, until they are gone
            if not self.ending:
                lost(gone(number))

        for number, link in self.links.items():
            watcher = threading.Thread(target=listen_to, args=(number, link), name=f"follower {number}", daemon=True)
            watcher.start()
            self.watchers.append(watcher)

    def send(self, turn: Turn) -> None:
        """Hand a turn to all of them. Raises Lost."""
        if not self.links:
            return
        line = encode(turn)
        for number, link in self.links.items():
            try:
                link.sendall(line)
            except OSError as error:
                raise gone(number) from error

    def end(self) -> None:
        """The server ends: let all of them end, and wait for it a little."""
        self.ending = True
        with contextlib.suppress(Lost):
            self.send(Turn(ends=True))
        for watcher in self.watchers:
            watcher.join(2 * ENDING)


class Leader:
    """Process 0, as the others know it: turn after turn."""

    def __init__(self, link: socket.socket, end: Callable[[int, str], object]) -> None:
        """end(code, message) is called in another thread where this process has to end, whatever its device waits for."""
        self.link, self.end = link, end
        self.turns: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self.followed = threading.Event()  # to the end
        threading.Thread(target=self.read, name="leader", daemon=True).start()

    def read(self) -> None:
        """Read all that process 0 says, also while the device works: that it is gone must not wait for that."""
        with contextlib.suppress(Exception), self.link, self.link.makefile("rb") as lines:
            for line in lines:
                turn = decode(line)
                self.turns.put(turn)
                if turn.ends:
                    if not self.followed.wait(ENDING):
                        self.end(0, "")
                    return
        self.end(FAILED, "process 0 is gone")

    def __iter__(self) -> Iterator[Turn]:
        """The turns, in their order, until the server ends."""
        while not (turn := self.turns.get()).ends:
            yield turn
        self.followed.set()


def follow(engine: Engine, turns: Iterable[Turn], context: int, watchdog: Watchdog) -> None:
    """Do what process 0 does, turn after turn, until it ends. Raises Lost where something else came of it."""
    ready(engine, context, log.debug)
    seen = 0
    for turn in turns:
        if turn.seen != seen:
            raise Lost("this process and process 0 wrote different tokens; their devices or libraries differ")
        for request in turn.new:
            engine.submit(request)
        for ticket in (under_way(engine, number) for number in turn.cancelled):
            if ticket is not None:
                cancel(engine, ticket)
        with watchdog.watching():
            if turn.steps:
                seen = noted(seen, engine.step())


def run(engine: Engine, link: socket.socket, context: int, limit: float) -> int:
    """Follow process 0 until it ends. Returns the exit code, or ends this process. limit: seconds that one step may take."""
    watchdog = Watchdog(limit, lambda: end_at_once(FAILED, f"a step has not ended within {limit:g} s"))
    watchdog.start()
    try:
        follow(engine, Leader(link, end_at_once), context, watchdog)
    except Exception as error:  # process 0 learns of it by the end of the connection
        log.error("the engine failed", exc_info=error)
        end_at_once(FAILED, str(error))
    watchdog.end()
    return 0


def leave_signals_to_process_0() -> None:
    """A first SIGTERM or Ctrl-C is process 0's to answer, which gets one too where all processes of a run are told to stop.

    A second one ends this process.
    """
    signalled = []

    def stop(number: int, frame: FrameType | None) -> None:
        signalled.append(number)
        if len(signalled) > 1:
            end_at_once(128 + number, "stopped at once")

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, stop)


def end_at_once(code: int, message: str) -> NoReturn:
    """End this process at once: its device may wait for others for ever."""
    if message:
        os.write(2, f"nanollm: {message}; this process ends.\n".encode())
    os._exit(code)
