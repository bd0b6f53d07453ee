"""The answers that one HTTP request waits for, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from nanollm_jax.engine.request import Request
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.serve.refusals import Refusal


class Piece(NamedTuple):
    """What one answer of a call, the one at `at`, grew by; finish_reason is not empty in its last one.

    tops has, of each token, as many of the best beside it as were asked for. cached of the prompt's tokens were not read.
    """

    at: int
    text: str
    tokens: list[int]
    logprobs: list[float]
    tops: list[list[tuple[int, float]]]
    finish_reason: str
    cached: int


class Call:
    """The answers that one HTTP request waits for. Its pieces are put in by the loop's own thread, and taken out there."""

    def __init__(self, requests: Sequence[Request], most: int) -> None:
        """most: tokens that may lie here unread, before whoever should read them is cut."""
        self.requests, self.most = requests, most
        self.tickets: list[Ticket] = []  # the engine thread's, until they have ended
        self.pieces: list[Piece] = []
        self.arrived = asyncio.Event()
        self.open = len(requests)
        self.unread = 0
        self.refusal: Refusal | None = None

    def put(self, piece: Piece) -> None:
        """A piece has come."""
        self.pieces.append(piece)
        self.unread += len(piece.tokens)
        self.open -= bool(piece.finish_reason)
        self.arrived.set()

    def fail(self, refusal: Refusal) -> None:
        """Nothing more will come."""
        self.refusal = self.refusal or refusal
        self.arrived.set()

    async def take(self) -> list[Piece]:
        """The pieces that have come since the last call, at least one; none when all answers have ended.

        Raises Refusal where something went wrong, after the pieces that came before it.
        """
        while not self.pieces:
            if self.refusal is not None:
                raise self.refusal
            if not self.open:
                return []
            self.arrived.clear()
            await self.arrived.wait()
        pieces, self.pieces, self.unread = self.pieces, [], 0
        return pieces

    @property
    def slow(self) -> bool:
        """Does too much lie here unread?"""
        return self.unread > self.most
