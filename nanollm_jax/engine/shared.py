"""An engine that several threads use at the same time: no thread of its own, whoever waits for an answer steps for all."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

from nanollm_jax.checks import check_counts
from nanollm_jax.engine import buckets, drafts
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.memory import NoRoomError, check_room, fitting, no_room, ran_out
from nanollm_jax.engine.request import Request, longest
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.errors import NanoLLMError, RequestError, shown
from nanollm_jax.executables import EAGER
from nanollm_jax.loading import Model

Key = TypeVar("Key")


class Shared:
    """An engine, and who is stepping it."""

    def __init__(self, engine: Engine) -> None:
        """Nobody is."""
        self.engine = engine
        self.turn = threading.Condition()
        self.stepping = False
        self.waiting: set[Ticket] = set()
        self.broken: BaseException | None = None
        self.read_with = [weakref.ref(leaf) for leaf in self.weights()]

    def weights(self) -> list[jax.Array | np.ndarray]:
        """All arrays of the model's parameters, and of those of who guesses."""
        return jax.tree.leaves((self.engine.model.params, self.engine.other and self.engine.other.params))

    @property
    def lost(self) -> bool:
        """Is what the rows hold no good: a step failed, or somebody has put other arrays into the model's tree since?"""
        now, then = self.weights(), self.read_with
        return self.broken is not None or [id(leaf) for leaf in now] != [id(one()) for one in then]

    @property
    def free(self) -> int:
        """How many rows nobody has or waits for."""
        return self.engine.rows - len(self.waiting)

    def submit(self, requests: Sequence[Request]) -> list[Ticket]:
        """Take requests in, in this order."""
        with self.turn:
            tickets = [self.engine.submit(request) for request in requests]
            self.waiting.update(tickets)
            return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more."""
        with self.turn:
            for ticket in tickets:
                self.engine.cancel(ticket)
            self.waiting.difference_update(tickets)

    @contextlib.contextmanager
    def alone(self) -> Iterator[Engine]:
        """The engine, while whoever comes has to wait. Raises RequestError where somebody has come before."""
        with self.turn:
            if self.stepping or self.waiting:
                raise RequestError(
                    "the rows of this model are in use; warm it up before the first request, or after the last."
                )
            self.stepping = True
        try:
            yield self.engine
        finally:
            with self.turn:
                self.stepping = False
                self.turn.notify_all()

    def follow(self, tickets: Sequence[Ticket]) -> Iterator[None]:
        """Step, or wait while somebody else does, until all of these have ended; yields after each step.

        Left before its end, by an error or because nobody wants more, it cancels them.
        """
        left = deque(tickets)
        try:
            while left:
                if left[0].ended:
                    left.popleft()
                else:
                    self.advance()
                    yield
        finally:
            self.cancel(tickets)

    def advance(self) -> None:
        """One step, ours or that of the thread that is at it. Raises RequestError where a step failed: the state is gone."""
        ours = False
        try:
            with self.turn:
                if self.stepping:
                    self.turn.wait()
                    return
                if self.broken is not None:
                    raise RequestError(
                        f"the rows of this model were lost in a step that ended with {self.broken!r}; ask again."
                    )
                ours = self.stepping = True  # within the try: Ctrl-C may come anywhere
            self.step()
        except BaseException as error:
            if ours:
                self.broken = (
                    self.broken or error
                )  # whoever waits is told so, and the model makes new rows for who comes next
            raise
        finally:
            if ours:
                with self.turn:
                    self.stepping = False
                    self.turn.notify_all()

    def step(self) -> None:
        """One step of the engine, and the time that it took."""
        engine, begun = self.engine, time.perf_counter()
        with CompileWatch() as watch:
            grown = engine.step()
        spent = engine.spent
        engine.spent = spent._replace(
            seconds=spent.seconds + time.perf_counter() - begun, compile_seconds=spent.compile_seconds + watch.seconds,
            compiled=spent.compiled + watch.programs, fetched=spent.fetched + watch.fetched,
        )  # fmt: skip
        for ticket in grown:
            ticket.began = ticket.began or engine.spent
            if ticket.ended:
                ticket.stopped = ticket.stopped or engine.spent
                self.waiting.discard(ticket)


def submit(
    model: Model,
    requests: Sequence[Request],
    rows: int | None = None,
    speculate: drafts.Speculate = None,
    most: int = 2**31,
) -> tuple[Shared, list[Ticket]]:
    """Hand requests to the engine that fits them, made for `most` at a time where there are more. Raises NoRoomError.

    One thread after the other: the next one sees whose rows are taken by then.
    """
    check_usable(model)
    with model.choosing:
        shared = rows_for(model, min(len(requests), most), rows, longest(requests), speculate)
        return shared, shared.submit(requests)


def check_usable(model: Model) -> None:
    """Raise RequestError within what JAX traces, and for parameters that are no arrays, or not any more."""
    if get_opaque_trace_state() != EAGER:
        raise RequestError(
            "answers are written by programs of their own, in which jax.jit, grad and vmap cannot look; ask outside of what "
            "they trace, or take forward, prefill and decode inside."
        )
    for leaf in jax.tree.leaves(model.params):
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise RequestError(f"a parameter of the model is {shown(leaf)}; expected an array.")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise RequestError(
                "a parameter of the model was deleted, as jax.jit does with what is donated to it (donate_argnums); load the "
                "model again, and donate a copy of its parameters."
            )


def as_they_end(shared: Shared, asked: Iterable[tuple[Key, Sequence[Request]]]) -> Iterator[tuple[Key, list[Ticket]]]:
    """Any number of groups of requests, each under a key -> every key and its tickets, when the last of these has ended.

    Groups are taken from `asked` when rows are about to be free for them: twice as many requests as there are rows are known
    at a time, however many there are.
    """
    source, rest = iter(asked), True
    waiting: dict[int, tuple[Key, list[Ticket]]] = {}
    numbers = itertools.count()
    try:
        while rest or waiting:
            while rest and sum(len(tickets) for _, tickets in waiting.values()) < 2 * shared.engine.rows:
                entry = next(source, None)
                if entry is None:
                    rest = False
                else:
                    waiting[next(numbers)] = entry[0], shared.submit(entry[1])
            for number, (key, tickets) in list(waiting.items()):
                if all(ticket.ended for ticket in tickets):
                    del waiting[number]
                    yield key, tickets
            if waiting:
                shared.advance()
    finally:
        shared.cancel([ticket for _, tickets in waiting.values() for ticket in tickets])


def rows_for(
    model: Model, count: int, rows: int | None, positions: int = 1, speculate: drafts.Speculate = None
) -> Shared:
    """The engine of a model for so many prompts: of `rows` rows, or the one that fits best; of those that speculate alike.

    That is the largest under way that has room for them, so that work which comes from many sides comes together in one engine;
    else the smallest that seats them together with all that is under way. A model makes an engine when it is first needed, and
    keeps it. Fewer rows are taken where there is no memory for `positions` in each, as many as the longest of these prompts
    has with its answer; NoRoomError where there is for none.
    """
    with model.choosing:
        try:
            return chosen(model, count, rows, positions, speculate)
        except NoRoomError:  # engines that nobody uses give theirs back
            idle = [size for size, shared in model.engines.items() if not shared.waiting and not shared.stepping]
            if not idle:
                raise
            for size in idle:
                del model.engines[size]
            return chosen(model, count, rows, positions, speculate)


def chosen(model: Model, count: int, rows: int | None, positions: int, speculate: drafts.Speculate) -> Shared:
    """rows_for with the memory that there is."""
    capacity = buckets.capacity(positions, model.config.max_positions)
    if rows is not None:
        (rows,) = check_counts(rows=rows)
        rows = -(-rows // model.dp) * model.dp
        there = model.engines.get((rows, speculate))
        had = 0 if there is None else there.engine.state.cache.capacity
        if capacity > had:
            check_room(model, rows, capacity, had, speculate)
        return made(model, rows, speculate)
    alike = [shared for shared in model.engines.values() if shared.engine.speculate == speculate]
    known: list[Shared] = sorted(alike, key=lambda shared: -shared.engine.rows)
    busy = [shared for shared in known if shared.waiting and not shared.lost]
    for shared in busy:
        if shared.free >= count and shared.engine.rows // model.dp in buckets.ROWS:
            return shared
    wanted = buckets.rows(count + sum(len(shared.waiting) for shared in busy), model.dp)
    there = model.engines.get((wanted, speculate))
    if there is None or capacity > there.engine.state.cache.capacity:
        wanted = fitting(model, wanted, positions, speculate)
    return made(model, wanted, speculate)


def made(model: Model, rows: int, speculate: drafts.Speculate) -> Shared:
    """The engine of so many rows, made now if there is none."""
    shared: Shared | None = model.engines.get((rows, speculate))
    if shared is None or shared.lost:
        try:
            shared = model.engines[rows, speculate] = Shared(Engine(model, rows, speculate=speculate))
        except jax.errors.JaxRuntimeError as error:
            if not ran_out(error):
                raise
            least = buckets.capacity(1, model.config.max_positions)
            raise NoRoomError(no_room(model, rows, least, 0, speculate)) from None
    return shared


def failed(tickets: Sequence[Ticket]) -> NanoLLMError | None:
    """What went wrong with the first of these with which something did."""
    return next((ticket.error for ticket in tickets if ticket.error is not None), None)
