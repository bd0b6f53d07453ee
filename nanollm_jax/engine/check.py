"""The law of load on the device at hand, in small: the same requests alone and beside each other, compared bit by bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.engine.warmup import warm
from nanollm_jax.settings import Sampling

SETTINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=1.1, top_k=30, top_p=0.95, repetition_penalty=1.1),
    Sampling(temperature=0.9, frequency_penalty=0.3, min_p=0.02),
)


class Found(NamedTuple):
    """What was compared: how many requests, in how many orders; tokens that were written, scored, and not read because they
    were cached; programs that were compiled meanwhile; and the first request of each order that had other bits, in words.
    """

    requests: int
    orders: int
    tokens: int
    cached: int
    compiled: int
    others: list[str]


def result(ticket: Ticket) -> tuple[Any, ...]:
    """All that came of a request, what went wrong with it as well: a grammar may have an end that no token spells."""
    answer, error = ticket.answer, str(ticket.error or "")
    vector = [] if ticket.vector is None else ticket.vector.tolist()
    return answer.token_ids, answer.logprobs, ticket.scores, answer.top_logprobs, vector, answer.finish_reason, error


def alone(engine: Engine, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
    """What comes of each request by itself, one after the other, where nothing is kept of those before."""
    found = []
    for request in requests:
        engine.forget()
        ticket = engine.submit(request)
        while not engine.idle:
            engine.step()
        found.append(result(ticket))
    return found


def beside(engine: Engine, requests: Sequence[Request], seed: int, leave: float = 0.05) -> list[Ticket]:
    """The requests in a random order, a few at a time, of which some are cancelled (leave: how likely in a step).

    -> their tickets, in the order of the requests
    """
    choose, tickets = random.Random(seed), {}
    waiting = choose.sample(range(len(requests)), len(requests))
    while waiting or not engine.idle:
        for _ in range(choose.choice([0, 0, 1, 3])):
            if waiting:
                n = waiting.pop()
                tickets[n] = engine.submit(requests[n])
        if tickets and choose.random() < leave:
            engine.cancel(tickets[choose.choice(list(tickets))])
        engine.step()
    return [tickets[n] for n in range(len(requests))]


def requests_for(engine: Engine, context: int, count: int) -> list[Request]:
    """Requests of all kinds, of at most `context` tokens: many begin alike, some are watched, every sixth is scored or made a
    vector; in turn they take all adapters that there are.
    """
    rng, V = np.random.default_rng(0), engine.config.vocab_size
    longest, adapters = min(3 * engine.piece, context // 2), 1 + len(engine.model.adapters)
    shared, made = rng.integers(0, V, longest).tolist(), []
    for n in range(count):
        begin = shared[: int(rng.integers(1, longest + 1))] if n % 2 else []
        ids = (*begin, *rng.integers(0, V, int(rng.integers(1, max(2, context // 8)))).tolist())
        if n % 6 == 5:
            wanted = read_only(n // 6, len(begin) + 1)
            made.append(Request((*ids, 1), 0, SETTINGS[0], adapter=n // 2 % adapters, **wanted))
            continue
        new = int(rng.integers(1, max(2, min(40, context - len(ids)))))
        seed = int(rng.integers(0, 2**32))
        own: dict[str, Any] = {"top_logprobs": n % 3, "streamed": n % 5 == 0, "adapter": n // 2 % adapters}
        made.append(Request(ids, new, SETTINGS[n % 3], seed, **own))
    return made


def read_only(n: int, given: int) -> dict[str, Any]:
    """What is wanted of the n-th text that nobody goes on with: scores from `given` on, or a vector of one of three kinds."""
    kinds: list[dict[str, Any]] = [{"pooling": "mean"}, {"pooling": "last"}, {"pooling": "labels", "labels": (1, 2)}]
    return [{"given": given}, *kinds][n % 4]


def check(
    engine: Engine, context: int, *, count: int = 24, orders: int = 3, progress: Callable[[str], None] = lambda _: None
) -> Found:
    """Compare requests of up to `context` tokens alone and in so many random orders. The engine is nobody else's.

    progress is told of each program that is ready.
    """
    warm(engine, context - 1, context, progress, scores=True)
    requests = requests_for(engine, context, count)
    expected, others, cached = alone(engine, requests), [], 0
    engine.forget()
    with CompileWatch() as watch:
        for order in range(orders):
            tickets = beside(engine, requests, order, leave=0.0)
            cached += sum(ticket.cached_tokens for ticket in tickets)
            wrong = [n for n, ticket in enumerate(tickets) if result(ticket) != expected[n]]
            if wrong:
                others.append(difference(wrong[0], expected[wrong[0]], result(tickets[wrong[0]])))
    engine.forget()
    tokens = sum(len(one[0]) + len(one[2]) for one in expected)
    return Found(count, orders, tokens, cached, watch.programs, others)


def difference(number: int, one: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    """Where two results of a request part, in words."""
    names = ("token", "log-probability", "score", "alternatives", "number")
    for what, mine, theirs in zip(names, one, other, strict=False):
        for at, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            if a != b:
                return f"request {number}: {what} {at} is {a} alone and {b} beside others"
    alone, beside = (f"{error or reason} after {len(ids)} tokens" for ids, *_, reason, error in (one, other))
    return f"request {number}: {alone} alone, {beside} beside others"
