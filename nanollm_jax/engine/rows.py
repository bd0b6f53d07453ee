"""What the engine knows on the host: requests on their way, who sits in which row, and what the device is about to say."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from nanollm_jax.config import ModelConfig
from nanollm_jax.engine import buckets
from nanollm_jax.engine.answer import Answer, Generation
from nanollm_jax.engine.draws import Asked, Drawn
from nanollm_jax.engine.pooling import Vectors
from nanollm_jax.engine.prefix import Block
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.slots import Scored
from nanollm_jax.engine.timings import Timings
from nanollm_jax.errors import GrammarError, NanoLLMError, NumericsError
from nanollm_jax.sampling import heard


class Event(NamedTuple):
    """Something that happened in a row to a request, and how much of it.

    "admitted" prompt tokens, "hit" tokens that were cached, "piece" tokens read, "switched" and "freed" tokens drawn;
    "drafted" tokens guessed and "accepted" those of them that were right; "chunk" steps of all rows that wrote, and row says
    how many these were
    """

    what: str
    request: int
    row: int
    amount: int


class Spent(NamedTuple):
    """What the steps of an engine have cost until now: seconds, those of making programs ready, and how many of these."""

    seconds: float = 0.0
    compile_seconds: float = 0.0
    compiled: int = 0
    fetched: int = 0


class Mark(NamedTuple):
    """A token that was scored: its log-probability, whether it is the best, the best ones in its place as (id, logprob)."""

    logprob: float
    best: bool
    tops: list[tuple[int, float]]


@dataclass(eq=False)
class Ticket:
    """A request on its way: its answer while it grows, and how many of its prompt's tokens were cached and how many read.

    scores are those of a text that is scored, as they come; vector is what its states sum up to so far where these are wanted,
    and made says that it is whole. drafted counts tokens that were guessed, accepted those that were guessed right.
    asked, began and stopped are what the engine had spent when it was submitted, had its first token, and ended; whoever steps
    the engine fills in the last two.
    """

    number: int
    request: Request
    answer: Answer
    asked: Spent
    began: Spent | None = None
    stopped: Spent | None = None
    error: NanoLLMError | None = None
    cancelled: bool = False
    cached_tokens: int = 0
    read_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    scores: list[Mark] = field(default_factory=list)
    vector: np.ndarray | None = None
    made: bool = False

    @property
    def ended(self) -> bool:
        """Will nothing more come?"""
        given, size = self.request.given, len(self.request.ids)
        done = bool(self.answer.finish_reason) or self.made if given is None else len(self.scores) == size - given
        return done or self.cancelled or self.error is not None

    def timings(self, now: Spent) -> Timings:
        """What it cost until now, or until it ended."""
        stopped = self.stopped or now
        began = self.began or stopped
        reading, writing = (
            tuple(b - a for a, b in zip(*span, strict=True)) for span in ((self.asked, began), (began, stopped))
        )
        compiled = [a + b for a, b in zip(reading, writing, strict=True)]
        return Timings(
            prompt_tokens=self.read_tokens,
            new_tokens=len(self.answer.token_ids),
            compile_seconds=compiled[1],
            prefill_seconds=reading[0] - reading[1],
            decode_seconds=writing[0] - writing[1],
            first_token_seconds=reading[0] if self.began else 0.0,
            cached_tokens=self.cached_tokens,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            compiled=int(compiled[2] - compiled[3]),
            fetched=int(compiled[3]),
        )

    def result(self, now: Spent) -> Generation:
        """The answer, finished or as far as it is. Raises what went wrong with it."""
        if self.error is not None:
            raise self.error
        return self.answer.result(self.request.seed, self.timings(now))


@dataclass(eq=False)
class Slot:
    """One row: whose it is, the text that it has to read, how far it has read, and which ids its cache holds.

    part       which part of the rows it is in, of as many as the mesh splits them into, and place which of the part's
    allowed    tokens that it may draw before it ends or is read anew, drawn how many it has drawn, flying how many more at most
               are on their way and were not looked at, those that are guessed not counted
    filled     positions that its cache holds of its text at most: held, and those of tokens that were not looked at, until they
               are (settle)
    reach      positions that were ever written behind the first ones that are held, of this text or of one before
    block      the last block of its prefix, while it is kept (keeps)
    world      in which what it holds was read (Engine.root)
    """

    row: int
    part: int
    place: int
    parts: int
    places: int
    ticket: Ticket | None = None
    text: list[int] = field(default_factory=list)
    at: int = 0
    held: list[int] = field(default_factory=list)
    filled: int = 0
    reach: int = 0
    allowed: int = 0
    drawn: int = 0
    flying: int = 0
    block: Block | None = None
    keeps: bool = False
    world: Hashable = None

    def one(self, value: int, others: int = 0) -> np.ndarray:
        """What a program takes of each part: this number in its own, another in the others.  [R]"""
        found = np.full(self.parts, others, np.int32)
        found[self.part] = value
        return found

    def named(self) -> np.ndarray:
        """Which rows a program is for: this one, and in the other parts nobody's.  [R]"""
        return self.one(self.place, self.places)

    def fill(self, positions: int, spare: int = 0) -> None:
        """Note that so many positions are written, and drafts behind them that may be thrown away."""
        self.filled, self.reach = positions, max(self.reach, positions + spare)

    @property
    def follows(self) -> bool:
        """Does its answer follow a grammar?"""
        return self.ticket is not None and self.ticket.answer.matcher is not None

    @property
    def reading(self) -> bool:
        """Is there more of its text to read?"""
        return self.ticket is not None and self.at < len(self.text)

    @property
    def left(self) -> int:
        """How many tokens it may still draw, those on their way counted as drawn; 0 while it reads."""
        return 0 if self.ticket is None or self.reading else self.allowed - self.drawn - self.flying

    def owner(self, steps: int, drafts: int) -> Owner:
        """Whose so many steps of writing are, each with so many drafts."""
        assert self.ticket is not None
        most = max(0, len(self.held) + self.allowed - self.drawn - self.filled)  # then its text is at its end
        tokens = min(steps, self.left)
        return Owner(self.row, self, self.ticket, tokens, positions=min(tokens * (1 + drafts), most))

    def take(self, found: Drawn | Scored | Vectors, owner: Owner, wrote: bool) -> list[Event]:
        """What has come back of it, on the host: tokens for its answer, scores, a vector. -> what is to be noted of it"""
        ticket = owner.ticket
        self.flying -= owner.tokens
        if isinstance(found, Scored):
            ticket.scores += marks(found, owner)
            return []
        if isinstance(found, Vectors):
            new = np.asarray(found.vector[owner.at], np.float32)
            ticket.vector = new if ticket.vector is None else ticket.vector + new
            ticket.made = not (self.reading or self.flying)
            return []
        row = jax.tree.map(lambda x: x[owner.at], found)
        drafted, accepted = int(row.drafted.sum()), int((row.drafted & row.real).sum())
        ticket.drafted, ticket.accepted = ticket.drafted + drafted, ticket.accepted + accepted
        self.settle(found, owner, wrote)
        for n in np.flatnonzero(row.real):
            if ticket.ended:
                break
            if wrote:
                self.held.append(ticket.answer.token_ids[-1])  # it was run
            self.drawn += 1
            best = list(zip(row.top_tokens[n].tolist(), row.top_logprobs[n].tolist(), strict=True))
            try:
                ticket.answer.push(int(row.token[n]), float(row.logprob[n]), best[: ticket.request.top_logprobs])
            except (NumericsError, GrammarError) as error:
                ticket.error = error
        noted = {"drafted": drafted, "accepted": accepted} if drafted else {}
        return [Event(what, ticket.number, self.row, amount) for what, amount in noted.items()]

    def settle(self, found: Any, owner: Owner, wrote: bool) -> None:
        """Note how many positions a chunk wrote, of those that were at most; of somebody else's row nothing."""
        if wrote and self.ticket in (None, owner.ticket):
            self.filled -= owner.positions - int(found.real[owner.at].sum())

    def piece(self, longest: int) -> int:
        """How many tokens its next piece has: it ends where the text does, or at a multiple of the longest."""
        return min(longest - self.at % longest, len(self.text) - self.at)

    def ends(self, longest: int) -> bool:
        """Is its next piece the last one?"""
        return self.at + self.piece(longest) == len(self.text)

    def wanted(self, longest: int) -> str:
        """What is wanted of its next piece: "score", or "mean", the sum of its states; of the last one "last", its last state,
        or "labels", the logits of some tokens; else "draw", which is the first token of an answer behind the last one.
        """
        assert self.ticket is not None
        pooling = self.ticket.request.pooling
        if self.scored(longest):
            return "score"
        return pooling if pooling == "mean" or (pooling and self.ends(longest)) else "draw"

    def shares(self, longest: int) -> bool:
        """May its next piece be kept for others, or be one that was read before? What is wanted whole has to be read."""
        return self.keeps and self.at % longest == 0 and self.wanted(longest) not in ("score", "mean")

    def recalls(self, longest: int) -> bool:
        """May its next piece be one that was read before? A whole one, and not the last."""
        return self.at + longest < len(self.text) and self.shares(longest)

    def program(self, longest: int) -> tuple[int, bool, str]:
        """What reads its next piece: the length that it is padded to, whether nothing is before it, what is wanted of it."""
        return buckets.piece(self.piece(longest), longest), self.at == 0, self.wanted(longest)

    def scored(self, longest: int) -> int:
        """How many tokens its next piece predicts that are to be scored: the last ones of it."""
        given = None if self.ticket is None else self.ticket.request.given
        size = self.piece(longest)
        return 0 if given is None else max(0, min(size, self.at + size + 1 - given))


class Owner(NamedTuple):
    """Whose one row of what is on its way is: where in the array, the slot, the request, and how many tokens at most, beside
    those that are guessed.

    Of scores these are behind the first `skipped`. positions is how many are written at most.
    """

    at: int
    slot: Slot
    ticket: Ticket
    tokens: int
    skipped: int = 0
    positions: int = 0


class Pending(NamedTuple):
    """What is on its way from the device: whose it is, and how many steps of writing made it, 0 where a piece was read.

    Where it was written, the token before each of it was run.
    """

    found: Drawn | Scored | Vectors
    owners: list[Owner]
    steps: int


def asked_of(config: ModelConfig, parts: int, request: Request, answer: Sequence[int] = (), left: int = 0) -> Asked:
    """A request's settings and what was answered so far, in every part of the rows the same."""
    V, P = config.vocab_size, config.max_positions
    numbers: list[Any] = [
        np.uint32(request.seed),
        *map(np.int32, (request.top_logprobs, left)),
        request.grammar is None,
        np.int32(request.adapter),
    ]
    one = Asked(heard([request.text], [answer], V, P), request.rows(V), *numbers)
    return jax.tree.map(lambda value: np.repeat(np.atleast_1d(value), parts, axis=0), one)


def marks(found: Scored, owner: Owner) -> Iterator[Mark]:
    """What is an owner's of scores on the host."""
    tops = owner.ticket.request.top_logprobs
    for at in range(owner.skipped, owner.skipped + owner.tokens):
        logprob, best, ids, values = (x[owner.at, at].tolist() for x in vars(found).values())
        yield Mark(logprob, best, list(zip(ids[:tops], values[:tops], strict=True)))


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginnings."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
