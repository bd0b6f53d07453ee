"""The thread of the glass box: one watched generation or one tool after the other, in an engine of its own.

The engine that serves is never asked, so its answers have the bits that they have without: two engines share a device, and no
program and no row. Those of a mesh they share by turns, which that engine's thread gives. A run lives as long as somebody's
stream of it is open; then what it kept is free again.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from nanollm_jax.errors import NanoLLMError
from nanollm_jax.glass.runs import Run, example
from nanollm_jax.loading import Model
from nanollm_jax.serve.refusals import Refusal, busy, refusal_of

log = logging.getLogger("nanollm.serve")
WAITING = 8  # runs and tools that may wait for their turn
LIMIT = 2**30  # bytes that all runs together may keep
EXAMPLE = "example"
ANEW, ENDS = ("summary", "cache"), ("end", "error")
Made = TypeVar("Made")


class Kept:
    """A run, and what it has said, for whoever follows it; the loop's own thread puts that in."""

    def __init__(self, name: str, key: int | None, run: Run) -> None:
        """key: the number of the key of whoever asked."""
        self.name, self.key, self.run = name, key, run
        self.said: list[bytes] = [framed("run", {"id": name})]
        self.last: dict[tuple[str, int], int] = {}  # where in `said` what is told anew stands
        self.more = asyncio.Event()
        self.ended = self.unwanted = False

    def say(self, word: str, data: dict[str, Any]) -> None:
        """In the loop: it has gone on. What is told anew takes the place of what was told before, for who comes later."""
        if word in ANEW:
            place = (word, data.get("row", 0))
            if place in self.last:
                self.said[self.last[place]] = b""
            self.last[place] = len(self.said)
        self.said.append(framed(word, data))
        self.finish(word in ENDS)

    def finish(self, ended: bool = True) -> None:
        """In the loop: wake who follows, for whom there will be nothing more where it has ended."""
        self.ended |= ended
        self.more.set()
        self.more = asyncio.Event()

    async def follow(self, *, hold: bool) -> AsyncIterator[bytes]:
        """All that it has said and will say. hold: stay behind the end, for as long as somebody reads."""
        n = 0
        while True:
            more = self.more
            for frame in self.said[n:]:
                if frame:
                    yield frame
                n += 1
            if self.ended and (self.unwanted or not hold):
                return
            if n == len(self.said):
                await more.wait()


def framed(word: str, data: Any) -> bytes:
    """One server-sent event."""
    return f"event: {word}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


class Watcher(threading.Thread):
    """Does what it is asked, one at a time."""

    def __init__(self, model: Model, *, prompt: str | None = None, limit: int = LIMIT, waiting: int = WAITING) -> None:
        """prompt: of what is written first, an example where it is None. Raises RequestError for what cannot be.

        limit: bytes that all runs may keep; waiting: how many may wait for a turn, beyond which the answer is 503."""
        super().__init__(name="watcher", daemon=True)
        self.model, self.limit, self.waiting = model, limit, waiting
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.left = 0  # jobs that were taken in and are not done; the loop's
        first = example(model, limit) if prompt is None else Run(model, prompt, limit=limit)
        self.runs = {EXAMPLE: Kept(EXAMPLE, None, first)}
        self.begun = False
        self.turn: Callable[[Callable[[], Any]], Any] = lambda work: work()  # where devices are somebody else's, theirs
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closing = False
        # as the engine's thread has them, for a server that has this one alone
        self.broken: BaseException | None = None
        self.warm = True

    def begin(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None] = lambda: None) -> None:
        """Start, for a loop."""
        self.loop = loop
        self.start()

    def end(self, seconds: float) -> bool:
        """Stop after the step that is under way. Did it, within so many seconds?"""
        self.closing = True
        self.jobs.put(None)
        self.join(seconds)
        return not self.is_alive()

    def run(self) -> None:
        """One job after the other."""
        while (job := self.jobs.get()) is not None and not self.closing:
            job()

    # what the loop says

    def check_room(self) -> None:
        """Raise Refusal where too much waits already."""
        if self.closing:
            raise busy("this server is shutting down; ask another one.", "draining")
        if self.left > self.waiting:
            raise busy(f"{self.waiting} watched runs wait already; ask again later.", "queue_full")

    def submit(self, job: Callable[[], None]) -> None:
        """Let a job wait for its turn."""
        self.left += 1

        def counted() -> None:
            try:
                job()
            finally:
                self.call(self.done)

        self.jobs.put(counted)

    def done(self) -> None:
        """In the loop: a job is done."""
        self.left -= 1

    async def do(self, tool: Callable[[], Made]) -> Made:
        """What comes of a tool, when its turn has come. Raises Refusal."""
        self.check_room()
        answer: asyncio.Future[Made] = asyncio.get_running_loop().create_future()

        def job() -> None:
            if answer.cancelled():
                return
            try:
                found = self.turn(tool)
            except Exception as error:
                self.call(settle, answer, None, said(error))
            else:
                self.call(settle, answer, found, None)

        self.submit(job)
        return await answer

    def example(self) -> Kept:
        """The example, which is written when it is first asked for."""
        kept = self.runs[EXAMPLE]
        if not self.begun:
            self.begun = True
            self.submit(lambda: self.write(kept))
        return kept

    def open(self, run: Run, key: int | None) -> Kept:
        """Take a run in, for whom `leave` is to be called. Raises Refusal where too much waits, or is kept already."""
        self.check_room()
        held = sum(kept.run.bytes for kept in self.runs.values())
        if held + run.bytes > self.limit:
            raise busy(
                f"this run would keep {run.bytes:,} bytes, and of {self.limit:,} others hold {held:,}; close a page, or ask "
                "for fewer tokens.", "no_memory",
            )  # fmt: skip
        kept = Kept(uuid.uuid4().hex, key, run)
        self.runs[kept.name] = kept
        self.submit(lambda: self.write(kept))
        return kept

    def leave(self, kept: Kept) -> None:
        """Nobody wants a run any more: it stops, and what it kept is free."""
        kept.unwanted = True
        self.runs.pop(kept.name, None)

    def find(self, name: str, key: int | None) -> Run:
        """A run by its name. Raises Refusal for one that is not there, or somebody else's."""
        kept = self.runs.get(name)
        if kept is None or (name != EXAMPLE and kept.key != key):
            raise Refusal(404, "there is no such run; it was left, or this server has begun anew.", code="not_found")
        return kept.run

    def close(self) -> None:
        """The server ends: whoever follows a run is let go."""
        self.closing = True
        for kept in self.runs.values():
            kept.unwanted = True
            kept.finish()

    # what the thread does

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """function(*args) in the loop, while there is one."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *args)

    def write(self, kept: Kept) -> None:
        """Write a run, and say what comes of it."""
        begun = time.perf_counter()
        try:
            writing = kept.run.write()
            try:
                while (told := self.turn(partial(next, writing, None))) is not None:
                    if kept.unwanted or self.closing:
                        return
                    self.call(kept.say, *told)
            finally:
                writing.close()
        except Exception as error:
            self.call(kept.say, "error", said(error).body()["error"])
        if kept.name == EXAMPLE:
            log.warning("the example is ready after %.1f s", time.perf_counter() - begun)


def said(error: Exception) -> Refusal:
    """What went wrong, as it is told."""
    if isinstance(error, NanoLLMError):
        return refusal_of(error)
    if isinstance(error, Refusal):
        return error
    log.error("a watched run failed", exc_info=error)
    return Refusal(500, "something went wrong here; the log of this server says what.")


def settle(answer: asyncio.Future[Any], found: Any, error: Exception | None) -> None:
    """In the loop: a tool of the glass box is done, and somebody may still want to know."""
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(found)
