"""Ready before the first request: every program that requests will need, asked for ahead as for nobody's rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from nanollm_jax.checks import check_counts
from nanollm_jax.engine import buckets, memory, pooling, prefix, slots
from nanollm_jax.engine.drafts import Speculate, program_of, speculation
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request, check_room
from nanollm_jax.engine.rows import asked_of
from nanollm_jax.engine.shared import rows_for
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.executables import only_made_ready
from nanollm_jax.loading import Model


def warmup(
    model: Model,
    *,
    batch: int = 1,
    prompt_tokens: int = 128,
    max_new_tokens: int = 128,
    rows: int | None = None,
    speculate: str | Speculate = None,
    progress: Callable[[str], None] = lambda _: None,
) -> int:
    """Compile ahead every program that requests up to this size need. Returns how many were compiled.

    batch            prompts at a time, whose rows are made ready; or `rows`, as in generate; speculate as there, too
    prompt_tokens    tokens of the longest prompt, max_new_tokens of the longest answer
    progress         is told of each program when it is ready: "[3/12] write, 8 rows of 256 positions: 1.2 s"
    Afterwards such requests compile nothing, whatever their lengths, sampling settings, seeds and stops; and the first turns of
    a Conversation of that size neither, where batch is 1. Raises RequestError for what the model has no positions for, and
    while somebody uses the rows.
    """
    batch, prompt_tokens, max_new_tokens = check_counts(
        batch=batch, prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens
    )
    check_room(model, prompt_tokens, max_new_tokens)
    with rows_for(model, batch, rows, speculate=speculation(speculate)).alone() as engine:
        return warm(engine, prompt_tokens, prompt_tokens + max_new_tokens, progress)


def warm(
    engine: Engine,
    prompt: int,
    positions: int,
    progress: Callable[[str], None] = lambda _: None,
    *,
    scores: bool = False,
) -> int:
    """warmup of one engine, that nobody uses yet. Returns how many programs were compiled.

    scores: texts are scored and made vectors, too.
    """
    with CompileWatch() as watch:
        found = list(programs(engine, prompt, positions, scores))
        try:
            with made_ready():
                for n, (name, run) in enumerate(found, 1):
                    begun = time.perf_counter()
                    run()
                    jax.block_until_ready(engine.state)
                    progress(f"[{n}/{len(found)}] {name}: {time.perf_counter() - begun:.1f} s")
        finally:  # whatever stopped it, nobody's request may run on what stands for results
            engine.state = engine.empty()
            engine.forget()
    return watch.programs


def made_ready() -> AbstractContextManager[None]:
    """Inside, programs are not run but where the first run of one has more to do: a GPU's driver loads it then."""
    return only_made_ready() if jax.default_backend() == "cpu" else nullcontext()


def programs(
    engine: Engine, prompt: int, positions: int, scores: bool = False
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The programs of an engine for prompts of up to `prompt` tokens in texts of up to `positions`: names, and calls that run
    them on nobody's rows, to be made in this order.
    """
    config, params = engine.config, engine.model.params
    nobody = np.full(engine.dp, engine.rows // engine.dp, np.int32)
    zeros, most = np.zeros(engine.dp, np.int32), engine.together(1)
    readers, none, no = np.repeat(nobody, most), np.repeat(zeros, most), np.zeros(engine.dp * most, bool)
    capacities = [S for S in buckets.capacities(config.max_positions) if engine.least <= S]
    limit = buckets.capacity(min(max(positions, engine.least), config.max_positions), config.max_positions)
    longest = buckets.piece(min(prompt, engine.piece), engine.piece)
    lengths = [T for T in buckets.pieces(engine.piece) if longest >= T]
    found: dict[int, list[jax.Array]] = {}  # what reading so many tokens gave

    def resize(capacity: int) -> None:
        memory.make_room(engine, capacity)

    def empty(capacity: int) -> None:
        engine.state = engine.empty(capacity)

    def begin() -> None:
        request = Request((0,), 1, engine.model.defaults.sampling)
        engine.state = slots.begin(engine.state, asked_of(config, engine.dp, request), nobody, zeros, config=config)

    def read(T: int, fresh: bool) -> None:
        tokens = np.zeros((engine.dp * engine.together(T), T), np.int32)
        how: dict[str, Any] = {"config": config, "fresh": fresh, "other": engine.other}
        engine.state, *found[T] = slots.read(params, engine.state, tokens, none, readers, none, none, none, **how)

    def first() -> None:
        engine.state, _ = slots.first(
            params, engine.state, found[lengths[0]][1], readers, no, engine.anything_first, config=config
        )

    def score(T: int) -> None:
        slots.score(params, found[T][0], np.zeros(found[T][0].shape[:2], np.int32), none, none, none, config=config)

    def total(T: int) -> None:
        pooling.total(found[T][0], none, config=config)

    def judge() -> None:
        pooling.judge(params, found[lengths[0]][1], none, np.zeros((len(none), 2), np.int32), config=config)

    def write() -> None:
        how = {"config": config, "speculate": program_of(engine.speculate)}
        steps = np.zeros(engine.rows, np.int32)
        engine.state, _ = slots.write_tokens(params, engine.state, steps, engine.anything, engine.other, **how)

    def keep() -> None:
        engine.pool = prefix.keep(engine.blocks(), engine.state, nobody, zeros, zeros + engine.places, config=config)

    def restore() -> None:
        engine.state = prefix.restore(engine.state, engine.blocks(), nobody, zeros, zeros, config=config)

    rows = f"{engine.rows} row{'s' * (engine.rows > 1)}"
    yield f"begin, {rows}", begin
    for capacity in (S for S in capacities if limit >= S):
        where = f"{rows} of {capacity:,} positions"
        if capacity > capacities[0]:
            yield f"make room, {where}", partial(resize, capacity)
            if capacity < limit:  # what rows that need less shrink to
                yield f"empty, {where}", partial(empty, capacity)
        for T in lengths:
            yield f"read {T} tokens, {where}", partial(read, T, True)
            if prompt > engine.piece or engine.rows == engine.dp:  # a conversation's turns, too
                yield f"read behind others {T} tokens, {where}", partial(read, T, False)
        guessed = f" {1 + engine.spare} tokens" if engine.spare else ""
        yield f"write{guessed}, {where}", write
        if prompt > engine.piece and engine.places:
            yield f"keep a prefix {engine.piece} tokens, {where}", keep
            yield f"restore a prefix {engine.piece} tokens, {where}", restore
    yield f"first token, {rows}", first
    for T in lengths if scores else ():
        yield f"score {T} tokens, {rows}", partial(score, T)
        yield f"sum {T} tokens, {rows}", partial(total, T)
    if scores:
        yield f"judge, {rows}", judge
