"""The one thread that owns the engine and the device; everybody else leaves it notes and is told what came of them.

Between two steps it takes in new calls and cancellations, and does one job at most (embedding a text), so that nobody who
writes waits longer than for one of these. After a step the loop of the server is woken once, for all rows together.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.engine.warmup import warm, warm_embed
from nanollm_jax.errors import NanoLLMError, NumericsError
from nanollm_jax.serve.calls import Call, Piece
from nanollm_jax.serve.metrics import Metrics
from nanollm_jax.serve.refusals import Refusal, refusal_of

log = logging.getLogger("nanollm.serve")
PATIENCE = 5.0  # seconds of compiling before a word is said of it
BROKEN = Refusal(500, "the engine failed and this server ends; ask again.")


class Closing(Exception):
    """The server ends while programs are being compiled."""


class EngineThread(threading.Thread):
    """Steps the engine while there is something to do.

    broken is what ended it, None while it is well; warm says that its programs are compiled.
    """

    def __init__(self, engine: Engine, metrics: Metrics, context: int) -> None:
        """context: tokens of the longest prompt and answer together, for which programs are compiled before the first."""
        super().__init__(name="engine", daemon=True)
        self.engine, self.metrics, self.context = engine, metrics, context
        self.turn = threading.Condition()
        self.notes: deque[Callable[[], None]] = deque()
        self.jobs: deque[Callable[[], None]] = deque()
        self.owners: dict[Ticket, tuple[Call, int]] = {}
        self.shown: dict[Ticket, tuple[int, int]] = {}  # characters and tokens of an answer that were handed out
        self.answers: set[asyncio.Future[Any]] = set()  # of jobs; the loop's
        self.warm = False
        self.closing = False
        self.broken: BaseException | None = None
        self.ended: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
        """Start, for a loop; ended() is called in it if a step fails."""
        self.loop, self.ended = loop, ended
        self.start()

    def end(self, seconds: float) -> bool:
        """Stop after the step, or the compilation, that is under way. Did it, within so many seconds?"""
        self.closing = True
        self.leave(self.notes, lambda: None)
        self.join(seconds)
        return not self.is_alive()

    # what the loop says

    def submit(self, call: Call) -> None:
        """Take in a call's requests, in this order."""

        def note() -> None:
            call.tickets = [self.engine.submit(request) for request in call.requests]
            self.owners |= {ticket: (call, index) for index, ticket in enumerate(call.tickets)}
            self.metrics.submitted(call.tickets)

        self.leave(self.notes, note)

    def cancel(self, call: Call) -> None:
        """Nobody waits for what is left of a call."""

        def note() -> None:
            for ticket in call.tickets:
                if self.owners.pop(ticket, None) is not None:
                    self.engine.cancel(ticket)
                    if ticket in self.engine.queue:  # who comes and goes while all rows are taken leaves nothing behind
                        self.engine.queue.remove(ticket)
                    self.metrics.cancelled(ticket)
                    self.shown.pop(ticket, None)

        self.leave(self.notes, note)

    async def run_job(self, job: Callable[[], Any]) -> Any:
        """What a function says that needs the device, called between two steps. Raises what it raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self.answers.add(answer)
        answer.add_done_callback(self.answers.discard)

        def note() -> None:
            if answer.cancelled():
                return
            found, error = None, None
            try:
                found = job()
            except Exception as known:  # it took nothing of the engine's, which goes on
                error = known
            loop.call_soon_threadsafe(settle, answer, found, error)

        self.leave(self.jobs, note)
        return await answer

    def leave(self, where: deque[Callable[[], None]], note: Callable[[], None]) -> None:
        """Leave a note."""
        with self.turn:
            where.append(note)
            self.turn.notify()

    # what the thread does

    def run(self) -> None:
        """Warm up, then step for ever. Whatever goes wrong is told to everyone who waits, and ends it."""
        try:
            self.warm_up()
            while not self.closing:
                with self.turn:
                    while not (self.notes or self.jobs or not self.engine.idle):
                        self.turn.wait()
                while self.notes:
                    self.notes.popleft()()
                if self.jobs:
                    self.jobs.popleft()()
                if not self.engine.idle:
                    self.step()
        except Closing:
            return
        except BaseException as error:
            self.broken = error
            assert self.loop is not None
            self.loop.call_soon_threadsafe(self.tell_all)

    def warm_up(self) -> None:
        """Compile every program that a request will need."""
        begun = said = time.perf_counter()

        def ready(program: str) -> None:
            nonlocal said
            log.debug("%s", program)
            if self.closing:
                raise Closing
            if time.perf_counter() - said > PATIENCE:
                said = time.perf_counter()
                log.info("compiling: %s", program)

        programs = warm(self.engine, self.context - 1, self.context, ready, scores=True)
        programs += warm_embed(self.engine.model, self.context, ready)
        self.warm = True
        log.warning("ready after %.1f s, in which %d programs were made", time.perf_counter() - begun, programs)

    def step(self) -> None:
        """One step, and what answers grew by."""
        begun = time.perf_counter()
        with CompileWatch() as watch:
            grown = self.engine.step()
        pieces = [(*self.owners[ticket], self.piece(ticket)) for ticket in grown if ticket in self.owners]
        self.metrics.stepped(self.engine, time.perf_counter() - begun, watch.programs)
        if pieces:
            assert self.loop is not None
            self.loop.call_soon_threadsafe(self.deliver, pieces)

    def piece(self, ticket: Ticket) -> Piece | NanoLLMError:
        """What an answer grew by since it was last looked at, or what went wrong with it."""
        if ticket.request.given is not None:
            return self.scored(ticket)
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

    def scored(self, ticket: Ticket) -> Piece | NanoLLMError:
        """The tokens of a text that have been scored since it was last looked at; `finish_reason` is "scored" at its end."""
        _, at = self.owners[ticket]
        _, known = self.shown.get(ticket, (0, 0))
        marks, given = ticket.scores[known:], ticket.request.given or 0
        self.shown[ticket] = (0, known + len(marks))
        self.metrics.scored(ticket)
        if ticket.ended:
            del self.owners[ticket], self.shown[ticket]
        if not all(math.isfinite(mark.logprob) for mark in marks):
            return NumericsError("the logits of a text that was to be scored")
        tokens = list(ticket.request.ids[given + known : given + known + len(marks)])
        return Piece(
            at, "", tokens, [mark.logprob for mark in marks], [mark.tops for mark in marks],
            "scored" if ticket.ended else "", ticket.cached_tokens,
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
        """In the loop: a step has failed, the state of every row is gone with it."""
        for answer in list(self.answers):
            settle(answer, None, BROKEN)
        self.ended()


def settle(answer: asyncio.Future[Any], found: Any, error: Exception | None) -> None:
    """In the loop: a job is done, and somebody may still want to know."""
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(found)
