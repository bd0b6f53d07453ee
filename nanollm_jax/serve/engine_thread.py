"""The one thread that owns the engine and the device; everybody else leaves it notes and is told what came of them.

Between two steps it takes in new calls and cancellations; that is a turn, and other processes of the same server are handed it
first. After a step the loop of the server is woken once, for all rows together. Another thread that wants a mesh has its
turns here as well: two threads could hand the devices two programs, to each in another order, whose members would wait for
each other.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.errors import NanoLLMError, NumericsError
from nanollm_jax.serve.calls import Call, Piece
from nanollm_jax.serve.followers import Followers
from nanollm_jax.serve.metrics import Metrics
from nanollm_jax.serve.refusals import Refusal, refusal_of
from nanollm_jax.serve.timeline import Timeline
from nanollm_jax.serve.turns import Turn, cancel, noted, ready
from nanollm_jax.serve.watchdog import Watchdog

log = logging.getLogger("nanollm.serve")
PATIENCE = 5.0  # seconds of compiling before a word is said of it
Made = TypeVar("Made")
BROKEN = Refusal(500, "the engine failed and this server ends; ask again.")


class Closing(Exception):
    """The server ends while programs are being compiled."""


class Stuck(Exception):
    """A step that has not ended in its time."""


class EngineThread(threading.Thread):
    """Steps the engine while there is something to do.

    broken is what ended it, None while it is well; warm says that its programs are compiled.
    """

    def __init__(self, engine: Engine, metrics: Metrics, context: int, followers: Followers, limit: float) -> None:
        """context: tokens of the longest prompt and answer together, for which programs are compiled before the first.

        followers are the other processes of this server; limit: seconds that one step may take.
        """
        super().__init__(name="engine", daemon=True)
        self.engine, self.metrics, self.context, self.followers = engine, metrics, context, followers
        self.timeline = Timeline(engine)
        self.watchdog = Watchdog(limit, lambda: self.fail(Stuck(f"a step has not ended within {limit:g} s")))
        self.wake = threading.Condition()
        self.notes: deque[Callable[[], None]] = deque()
        self.others: deque[tuple[Callable[[], Any], Future[Any]]] = deque()  # what other threads wait for
        self.new: list[Request] = []  # of the next turn, and numbers of tickets whose answers nobody wants
        self.cancelled: list[int] = []
        self.seen = 0
        self.owners: dict[Ticket, tuple[Call, int]] = {}
        self.shown: dict[Ticket, tuple[int, int]] = {}  # characters and tokens of an answer that were handed out
        self.warm = False
        self.closing = self.over = False
        self.broken: BaseException | None = None
        self.ended: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
        """Start, for a loop; ended() is called in it if a step fails."""
        self.loop, self.ended = loop, ended
        self.followers.watch(self.fail)
        self.watchdog.start()
        self.start()

    def end(self, seconds: float) -> bool:
        """Stop after the step, or the compilation, that is under way. Did it, within so many seconds?"""
        self.closing = True
        self.watchdog.end()
        self.leave(lambda: None)
        self.join(seconds)
        return not self.is_alive()

    # what the loop says

    def submit(self, call: Call) -> None:
        """Take in a call's requests, in this order."""

        def note() -> None:
            call.tickets = [self.engine.submit(request) for request in call.requests]
            self.new += call.requests
            self.owners |= {ticket: (call, index) for index, ticket in enumerate(call.tickets)}
            self.metrics.submitted(call.tickets)

        self.leave(note)

    def cancel(self, call: Call) -> None:
        """Nobody waits for what is left of a call."""

        def note() -> None:
            for ticket in call.tickets:
                if self.owners.pop(ticket, None) is not None:
                    cancel(self.engine, ticket)
                    self.cancelled.append(ticket.number)
                    self.metrics.cancelled(ticket)
                    self.shown.pop(ticket, None)

        self.leave(note)

    # what another thread says

    def turn(self, work: Callable[[], Made]) -> Made:
        """What comes of work that needs the devices, done between two turns; the caller waits for it. Raises what it raises."""
        answer: Future[Made] = Future()
        with self.wake:
            if self.over:
                raise BROKEN
            self.others.append((work, answer))
            self.wake.notify()
        return answer.result()

    def leave(self, note: Callable[[], None]) -> None:
        """Leave a note."""
        with self.wake:
            self.notes.append(note)
            self.wake.notify()

    # what the thread does

    def run(self) -> None:
        """Warm up, then step for ever. Whatever goes wrong is told to everyone who waits, and ends it."""
        try:
            self.warm_up()
            while not self.closing:
                with self.wake:
                    while not (self.notes or self.others or not self.engine.idle):
                        self.wake.wait()
                while self.notes:
                    self.notes.popleft()()
                if self.others:
                    work, answer = self.others.popleft()
                    finish(work, answer)
                with self.watchdog.watching():
                    self.take_turn()
        except Closing:
            return
        except BaseException as error:
            self.fail(error)
        finally:
            with self.wake:
                self.over = True
            for _, answer in self.others:
                answer.set_exception(BROKEN)

    def take_turn(self) -> None:
        """Say to the other processes what comes now, and do it."""
        turn = Turn(tuple(self.new), tuple(self.cancelled), not self.engine.idle, seen=self.seen)
        self.new, self.cancelled = [], []
        if turn != Turn(seen=self.seen):
            self.followers.send(turn)
        if turn.steps:
            self.step()

    def fail(self, error: BaseException) -> None:
        """It cannot go on: tell everyone, once. Called by any thread."""
        with self.wake:
            if self.broken is not None or self.loop is None or self.loop.is_closed():
                return
            self.broken = error
        self.loop.call_soon_threadsafe(self.tell_all)

    def warm_up(self) -> None:
        """Compile every program that a request will need."""
        begun = said = time.perf_counter()

        def progress(program: str) -> None:
            nonlocal said
            log.debug("%s", program)
            if self.closing:
                raise Closing
            if time.perf_counter() - said > PATIENCE:
                said = time.perf_counter()
                log.info("compiling: %s", program)

        programs = ready(self.engine, self.context, progress)
        self.warm = True
        log.warning("ready after %.1f s, in which %d programs were made", time.perf_counter() - begun, programs)

    def step(self) -> None:
        """One step, and what answers grew by."""
        begun = time.perf_counter()
        with CompileWatch() as watch:
            grown = self.engine.step()
        self.seen = noted(self.seen, grown)
        pieces = [(*self.owners[ticket], self.piece(ticket)) for ticket in grown if ticket in self.owners]
        events = list(self.engine.events)
        self.engine.events.clear()
        self.timeline.note(begun, events)
        self.metrics.stepped(self.engine, events, time.perf_counter() - begun, watch.programs)
        if pieces:
            assert self.loop is not None
            self.loop.call_soon_threadsafe(self.deliver, pieces)

    def piece(self, ticket: Ticket) -> Piece | NanoLLMError:
        """What an answer grew by since it was last looked at, or what went wrong with it."""
        if not ticket.request.answered:
            return self.without_answer(ticket)
        answer = ticket.answer
        characters, tokens = self.shown.get(ticket, (0, 0))
        certain = answer.certain()
        self.shown[ticket] = (certain, len(answer.token_ids))
        self.metrics.grown(ticket, len(answer.token_ids) - tokens)
        _, index = self.owners[ticket]
        if ticket.ended:
            del self.owners[ticket], self.shown[ticket]
        if ticket.error is not None:
            return ticket.error
        return Piece(
            index, answer.text[characters:certain], answer.token_ids[tokens:], answer.logprobs[tokens:],
            answer.top_logprobs[tokens:], answer.finish_reason, ticket.cached_tokens,
        )  # fmt: skip

    def without_answer(self, ticket: Ticket) -> Piece | NanoLLMError:
        """Of a text that nobody goes on with: the tokens that have been scored since it was last looked at, or nothing until
        its vector is whole, which the ticket has then; `finish_reason` is "read" at its end.
        """
        _, at = self.owners[ticket]
        _, known = self.shown.get(ticket, (0, 0))
        marks, given = ticket.scores[known:], ticket.request.given or 0
        self.shown[ticket] = (0, known + len(marks))
        if ticket.ended:
            del self.owners[ticket], self.shown[ticket]
            self.metrics.without_answer(ticket)
        if ticket.error is not None:
            return ticket.error
        vector = [] if ticket.vector is None else ticket.vector.tolist()
        if not all(map(math.isfinite, (*vector, *(mark.logprob for mark in marks)))):
            return NumericsError("the states of a text, or its logits")
        tokens = list(ticket.request.ids[given + known : given + known + len(marks)])
        return Piece(
            at, "", tokens, [mark.logprob for mark in marks], [mark.tops for mark in marks],
            "read" if ticket.ended else "", ticket.cached_tokens,
        )  # fmt: skip

    def deliver(self, pieces: Sequence[tuple[Call, int, Piece | NanoLLMError]]) -> None:
        """In the loop: hand pieces to the calls that wait for them. Who reads too slowly is cut."""
        for call, _, piece in pieces:
            if isinstance(piece, NanoLLMError):
                call.fail(refusal_of(piece))
            elif call.refusal is None:
                call.put(piece)
            if call.slow:
                call.fail(Refusal(408, "the answer was not read as fast as it was written."))
                self.cancel(call)

    def tell_all(self) -> None:
        """In the loop: a step has failed or a process is lost, and the state of every row is gone with it."""
        self.ended()


def finish(work: Callable[[], Any], answer: Future[Any]) -> None:
    """Work that another thread waits for."""
    try:
        answer.set_result(work())
    except BaseException as error:
        answer.set_exception(error)
