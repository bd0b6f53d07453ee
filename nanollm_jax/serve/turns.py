"""What all processes of one server do alike, in the same order: the same programs with the same numbers.

A turn is what the engine is handed between two steps. Process 0 makes it, of requests, clocks and sockets that the others do
not have; what then happens is a function of the turns, so that all processes ask their devices for the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.warmup import warm


@dataclass(frozen=True)
class Turn:
    """What comes between two steps, and whether there is a step.

    new        requests, in this order
    cancelled  numbers of tickets that nobody waits for
    steps      whether the engine steps then
    ends       nothing comes behind this turn
    seen       what came of all steps before, as a number: whoever has another one has left the way of the others
    """

    new: tuple[Request, ...] = ()
    cancelled: tuple[int, ...] = ()
    steps: bool = False
    ends: bool = False
    seen: int = 0


def ready(engine: Engine, context: int, progress: Callable[[str], None]) -> int:
    """Compile every program that requests of up to `context` tokens will need, and make the pool of their beginnings, for which
    nobody who writes has to wait then. Returns how many were compiled.
    """
    programs = warm(engine, context, context, progress, scores=True)
    if engine.places:
        engine.blocks()
    return programs


def cancel(engine: Engine, ticket: Ticket) -> None:
    """Nobody waits for an answer any more. Who comes and goes while all rows are taken leaves nothing behind."""
    engine.cancel(ticket)
    if ticket in engine.queue:
        engine.queue.remove(ticket)


def under_way(engine: Engine, number: int) -> Ticket | None:
    """The ticket of this number, None where it has ended."""
    seated = (slot.ticket for slot in engine.slots if slot.ticket is not None)
    return next((ticket for ticket in (*engine.queue, *seated) if ticket.number == number), None)


def noted(seen: int, grown: Sequence[Ticket]) -> int:
    """`seen` behind a step in which these answers grew."""
    told = [
        (one.number, one.made, len(one.scores), len(one.answer.token_ids), one.answer.token_ids[-1:]) for one in grown
    ]
    return zlib.crc32(repr(told).encode(), seen)
