"""The two kernels of flash.py, in Pallas: what a program of the grid does with its part.

Refs are parts of arrays in the GPU's memory; what is loaded of them stands in registers, with powers of two for sizes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

BLOCK = 64  # slots that are multiplied together
TOGETHER = 16  # spans that are summed together
LOWEST = float(jnp.finfo(jnp.float32).min)
NONE = -1  # the position of a slot or query that is not there


class Span(NamedTuple):
    """What is fixed of a grid of heads x tiles of queries x spans of slots, and of the scores."""

    queries: int  # of one key/value head, G of each token
    tile: int
    group: int  # G
    before: int  # slots that are not the tokens' own
    own: int
    length: int  # slots of a span; the tokens' own are one by themselves
    window: int | None
    scale: float
    cap: float | None

    @property
    def spans(self) -> int:
        """How many there are."""
        return -(-self.before // self.length) + (self.own > 0)


def go_through(
    span: Span, q: Any, keys: Any, values: Any, stands: Any, positions: Any, held: Any, top: Any, total: Any, mean: Any
) -> None:
    """One span of slots: the highest score, the sum of the weights below it and the weighted sum of the values.

    Of a head and a tile of its queries: q [tile H], the position of each query in stands [tile], keys and values [S H],
    positions [S], held []: how many slots before the tokens' own hold something -> top and total [tile], mean [tile H]
    """
    tile, part = pl.program_id(1), pl.program_id(2)
    real = tile * span.tile + jnp.arange(span.tile) < span.queries
    every = pl.ds(0, span.tile)
    query = triton.load(q.at[every], mask=real[:, None], other=0)
    stand = triton.load(stands.at[every], mask=real, other=NONE)
    begin = part * span.length
    end = jnp.minimum(begin + span.length, held[...])
    if span.own:  # no query looks at keys behind its own
        last = jnp.minimum(((tile + 1) * span.tile - 1) // span.group + 1, span.own)
        is_own = part == span.spans - 1
        begin, end = jnp.where(is_own, span.before, begin), jnp.where(is_own, span.before + last, end)

    def block(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, mean = carry
        slots = pl.ds(begin + step * BLOCK, BLOCK)
        there = begin + step * BLOCK + jnp.arange(BLOCK) < end
        position = triton.load(positions.at[slots], mask=there, other=NONE)[None]
        seen = (position >= 0) & (position <= stand[:, None])
        seen = seen if span.window is None else seen & (stand[:, None] - position < span.window)
        key = triton.load(keys.at[slots], mask=there[:, None], other=0)
        score = triton.dot(query, key, trans_b=True) * span.scale
        score = score if span.cap is None else span.cap * jnp.tanh(score / span.cap)
        higher = jnp.maximum(top, jnp.max(jnp.where(seen, score, LOWEST), axis=1))
        weight = jnp.where(seen, jnp.exp(score - higher[:, None]), 0.0)
        less = jnp.exp(top - higher)
        value = triton.load(values.at[slots], mask=there[:, None], other=0)
        found = triton.dot(weight.astype(value.dtype), value)
        return higher, total * less + jnp.sum(weight, axis=1), mean * less[:, None] + found

    sizes = (span.tile,), (span.tile,), (span.tile, query.shape[1])
    nothing = tuple(jnp.full(size, fill, jnp.float32) for size, fill in zip(sizes, (LOWEST, 0.0, 0.0), strict=True))
    steps = (jnp.maximum(end - begin, 0) + BLOCK - 1) // BLOCK
    made = jax.lax.fori_loop(0, steps, block, nothing)
    for ref, x in zip((top, total, mean), made, strict=True):
        triton.store(ref.at[every], x, mask=real if x.ndim == 1 else real[:, None])


def bring_together(spans: int, tops: Any, totals: Any, means: Any, mixed: Any) -> None:
    """All spans of one query, in their order.  tops and totals [C], means [C H] -> mixed [H]"""
    load = lambda ref, first, other: triton.load(  # noqa: E731
        ref.at[pl.ds(first, TOGETHER)],
        mask=(first + jnp.arange(TOGETHER) < spans).reshape(TOGETHER, *(1,) * (ref.ndim - 1)),
        other=other,
    )

    def higher(step: jax.Array, top: jax.Array) -> jax.Array:
        return jnp.maximum(top, jnp.max(load(tops, step * TOGETHER, LOWEST), axis=0))

    def some(step: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, mean = carry
        first = step * TOGETHER
        share = jnp.exp(load(tops, first, LOWEST) - highest)
        total += jnp.sum(share * load(totals, first, 0.0), axis=0)
        return total, mean + jnp.sum(share[:, None] * load(means, first, 0.0), axis=0)

    steps = -(-spans // TOGETHER)
    highest = jax.lax.fori_loop(0, steps, higher, jnp.float32(LOWEST))
    nothing = jnp.float32(0), jnp.zeros(mixed.shape, jnp.float32)
    total, mean = jax.lax.fori_loop(0, steps, some, nothing)
    mixed[...] = mean / jnp.where(total == 0, 1.0, total)  # a query that sees nothing
