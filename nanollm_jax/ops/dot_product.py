"""Attention as one operation: the text that all devices have, whose every value can be seen, and a faster one for some."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name as tag

from nanollm_jax.ops.attention import mix, scores, visible, weights


class Seen(NamedTuple):
    """What new tokens may look at: keys and values [B K S H], the position each stands at [B S], negative where there is
    none; behind how many of them [B] nothing stands that a row's new tokens look at; and how many of them, the last ones, are
    the new tokens themselves, in their order.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    filled: jax.Array
    own: int


@jax.named_scope("scores")
def dot_product(
    q: jax.Array, seen: Seen, at: jax.Array, window: int | None, scale: float | None, cap: float | None, name: str
) -> jax.Array:
    """The mean of the values that each query may see, weighted by how well their keys match.

    q [B T N H], whose tokens stand at positions `at` [B T] -> [B T N H] float32. window, scale and cap as in attention.py; name
    is that of the layer, for its tags.
    """

    def plainly(q: jax.Array, seen: Seen, at: jax.Array) -> jax.Array:
        mask = visible(at, tag(seen.positions, f"{name}.slots"), window)  # [B T S]
        found = tag(scores(q, seen.keys, mask, scale, seen.own, cap), f"{name}.scores")
        return mix(tag(weights(found, seen.own), f"{name}.weights"), seen.values, seen.own)  # of weights [B K G T S]

    return plainly(q, seen, at)
