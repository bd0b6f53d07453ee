"""Texts out of prompts: all of them at the end, or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from nanollm_jax.engine import drafts
from nanollm_jax.engine.answer import Generation
from nanollm_jax.engine.drafts import speculation
from nanollm_jax.engine.request import Request, encode_prompts, requests_of
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.shared import Shared, failed, submit
from nanollm_jax.engine.timings import Timings
from nanollm_jax.grammar import Grammar
from nanollm_jax.letters import nbytes
from nanollm_jax.loading import Model
from nanollm_jax.settings import Sampling

Piece = TypeVar("Piece", str, tuple[int, str])
Stops = str | Sequence[str] | Sequence[Sequence[str]]
Grammars = Grammar | Sequence[Grammar | None] | None
StopIds = int | Sequence[int] | Sequence[Sequence[int]]
Speculate = str | drafts.Speculate
Adapters = str | Sequence[str | None] | None


@overload
def generate(
    model: Model,
    prompts: str | Sequence[int],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | None = ...,
    stop: Stops = ...,
    stop_ids: StopIds = ...,
    grammar: Grammars = ...,
    adapter: Adapters = ...,
    n: None = ...,
    top_logprobs: int = ...,
    rows: int | None = ...,
    speculate: Speculate = ...,
) -> Generation: ...


@overload
def generate(
    model: Model,
    prompts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] = ...,
    sampling: Sampling | Sequence[Sampling] | None = ...,
    seed: int | Sequence[int] | None = ...,
    stop: Stops = ...,
    stop_ids: StopIds = ...,
    grammar: Grammars = ...,
    adapter: Adapters = ...,
    n: int | None = ...,
    top_logprobs: int = ...,
    rows: int | None = ...,
    speculate: Speculate = ...,
) -> Any: ...


def generate(
    model: Model,
    prompts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] = 128,
    sampling: Sampling | Sequence[Sampling] | None = None,
    seed: int | Sequence[int] | None = 0,
    stop: Stops = (),
    stop_ids: StopIds = (),
    grammar: Grammars = None,
    adapter: Adapters = None,
    n: int | None = None,
    top_logprobs: int = 0,
    rows: int | None = None,
    speculate: Speculate = None,
) -> Generation | list[Generation] | list[list[Generation]]:
    """Continue prompts. One prompt -> a Generation; a list of any number of prompts -> a list of them, in order.

    prompts        a text, a list of texts, a list of ids (one prompt), or a list of lists of ids, which are taken as they are
    max_new_tokens of each answer, at most
    sampling       None is what the checkpoint's generation_config.json says, greedy where it says nothing
    seed           one number, 0 to 2**32 - 1, for every prompt, or one per prompt; None is a fresh one for each, which the
                   Generation has. Draws depend on (seed, position) only
    stop           texts that end an answer and are not part of it, besides the model's end-of-sequence ids; one that spells a
                   special token, which prints nothing, is that token's id as well
    stop_ids       ids that end an answer, too
    grammar        the form that every answer has: a nanollm_jax.Grammar, made from a JSON schema, a regular expression or a
                   Lark grammar. An answer of it ends with "stop" where the form is whole, and with "length" where it is cut;
                   logprobs are the model's own as without it
    adapter        by its name, one of those that the model was loaded with; None is the model as it is
    n              answers to each prompt, drawn with seed, seed + 1, ..: instead of each Generation a list of n of them
    top_logprobs   how many of the best tokens to give beside each, up to 20
    rows           how many are written at the same time. None is 1, 8, 16 or 32 per part of the rows that a mesh splits, as
                   it fits; answers of engines with another number of rows are the same but for the last bits of their logprobs
    speculate      who guesses tokens ahead, several of which are then written in the time of one where the guess was right:
                   "lookup:4" or Lookup(4) takes 4 from the text itself, DraftModel(small, 4) asks a smaller model. The answer
                   does not depend on the guesses; of another length of blocks, like another number of rows, it may have other
                   last bits
    max_new_tokens, sampling, seed, grammar and adapter may be lists of one per prompt; stop and stop_ids lists of lists.
    Raises RequestError naming the argument that cannot be honoured, NumericsError where the model computes no numbers.
    """
    texts, single = encode_prompts(model, prompts)
    requests = requests_of(
        model, texts, max_new_tokens, sampling, seed, stop, stop_ids,
        grammar=grammar, adapter=adapter, n=1 if n is None else n, top_logprobs=top_logprobs,
    )  # fmt: skip
    if not requests:
        return []
    shared, tickets = submit(model, requests, rows, speculation(speculate))
    for _ in shared.follow(tickets):
        if (error := failed(tickets)) is not None:
            raise error
    results = [ticket.result(shared.engine.spent) for ticket in tickets]
    if n is None:
        return results[0] if single else results
    each = [results[first : first + n] for first in range(0, len(results), n)]
    return each[0] if single else each


@overload
def stream(  # type: ignore[overload-overlap]  # a text is a sequence of texts as well, and is one prompt
    model: Model,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | None = ...,
    stop: Stops = ...,
    stop_ids: StopIds = ...,
    grammar: Grammars = ...,
    adapter: Adapters = ...,
    top_logprobs: int = ...,
    rows: int | None = ...,
    speculate: Speculate = ...,
) -> Stream[str]: ...


@overload
def stream(
    model: Model,
    prompt: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] = ...,
    sampling: Sampling | Sequence[Sampling] | None = ...,
    seed: int | Sequence[int] | None = ...,
    stop: Stops = ...,
    stop_ids: StopIds = ...,
    grammar: Grammars = ...,
    adapter: Adapters = ...,
    top_logprobs: int = ...,
    rows: int | None = ...,
    speculate: Speculate = ...,
) -> Stream[tuple[int, str]]: ...


def stream(
    model: Model,
    prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] = 128,
    sampling: Sampling | Sequence[Sampling] | None = None,
    seed: int | Sequence[int] | None = 0,
    stop: Stops = (),
    stop_ids: StopIds = (),
    grammar: Grammars = None,
    adapter: Adapters = None,
    top_logprobs: int = 0,
    rows: int | None = None,
    speculate: Speculate = None,
) -> Stream[Any]:
    """Continue a prompt and yield its text as it is written, piece by piece. Joined, the pieces are generate's text.

    Of a list of prompts the pieces are pairs (index of the prompt, text), in the order in which they come. `for` and
    `async for` both work. Arguments as in generate, checked before the first piece is asked for. A piece is whole characters,
    and text that may turn out to be the beginning of a stop string is held back until that is known.
    """
    texts, single = encode_prompts(model, prompt)
    requests = requests_of(
        model, texts, max_new_tokens, sampling, seed, stop, stop_ids,
        grammar=grammar, adapter=adapter, top_logprobs=top_logprobs, streamed=True,
    )  # fmt: skip
    guesses = speculation(speculate)
    return Stream(lambda: submit(model, requests, rows, guesses), requests, single)


class Stream(Iterator[Piece], Generic[Piece]):
    """The pieces of one answer, in order, or pairs (index, piece) of several.

    generation and timings are the answer so far and what it cost so far, of the first prompt; generations has all of them.
    """

    def __init__(
        self,
        submit: Callable[[], tuple[Shared, list[Ticket]]],
        requests: Sequence[Request],
        single: bool,
        done: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """submit() hands the requests to the engine that answers; nothing runs before the first piece is asked for.

        done is called with this stream, once, when its answers have ended or nobody wants more of them.
        """
        self.submit, self.done = submit, done
        self.requests = requests
        self.single = single
        self.shared: Shared | None = None
        self.tickets: list[Ticket] = []
        self.shown = [0] * len(requests)
        self.steps: Iterator[None] = iter(())
        self.closed = False
        self.coming: asyncio.Future[Piece | None] | None = None

    def begin(self) -> None:
        """Submit the requests, once."""
        if self.shared is None and not self.closed:
            self.shared, self.tickets = self.submit()
            self.steps = self.shared.follow(self.tickets)

    def __next__(self) -> Piece:
        """The next text that is certain. Raises StopIteration after the last, and what went wrong with an answer."""
        self.begin()
        while True:
            for index, ticket in enumerate(self.tickets):
                certain = ticket.answer.certain()
                if certain > self.shown[index]:
                    piece = ticket.answer.text[self.shown[index] : certain]
                    self.shown[index] = certain
                    return piece if self.single else (index, piece)  # type: ignore[return-value]
            if (error := failed(self.tickets)) is not None:
                self.close()
                raise error
            try:
                ended = next(self.steps, self.steps) is self.steps
            except BaseException:
                self.closed = True  # nothing came of it
                raise
            if ended and not self.grown():
                self.finish()
                raise StopIteration

    def __aiter__(self) -> Stream[Piece]:
        """The same pieces in `async for`: another thread waits for each."""
        return self

    async def __anext__(self) -> Piece:
        """The next piece. Who stops waiting for it, as in asyncio.wait_for, gets it the next time."""
        self.coming = self.coming or asyncio.ensure_future(asyncio.to_thread(next, self, None))
        try:
            piece = await asyncio.shield(self.coming)
        except Exception:
            self.coming = None
            raise
        self.coming = None
        if piece is None:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Nobody wants more of it: the answer stays as far as it came."""
        if self.shared is not None:
            self.shared.cancel(self.tickets)
            self.finish()
        self.closed = True

    def grown(self) -> bool:
        """Is there text that was not shown yet?"""
        return any(ticket.answer.certain() > shown for ticket, shown in zip(self.tickets, self.shown, strict=True))

    def finish(self) -> None:
        """Say once that it is done."""
        if not self.closed and failed(self.tickets) is None:
            self.closed = True
            self.done(self)

    @property
    def generations(self) -> list[Generation]:
        """The answers as far as they were computed; complete where finish_reason is not empty."""
        if self.shared is None:
            return [Generation("", [], [], "", len(request.ids), request.seed) for request in self.requests]
        return [ticket.result(self.shared.engine.spent) for ticket in self.tickets]

    @property
    def generation(self) -> Generation:
        """The answer to the first prompt."""
        return self.generations[0]

    @property
    def timings(self) -> Timings:
        """Seconds and tokens so far, of the first prompt."""
        return self.generation.timings

    def __repr__(self) -> str:
        written = sum(len(ticket.answer.token_ids) for ticket in self.tickets)
        asked = sum(request.max_new_tokens for request in self.requests)
        shared, answers = self.shared, f"{len(self.requests)} answer{'s' * (len(self.requests) != 1)}"
        where = "" if shared is None else f", {shared.engine.rows} rows, {nbytes(shared.engine.state)} of state"
        return f"Stream({answers}, {written} of at most {asked} tokens{where})"
