"""Attention as one operation: the text that all devices have, whose every value can be seen, and a faster one for some."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as tag

from nanollm_jax.ops import gpu, native
from nanollm_jax.ops.attention import mix, scores, visible, weights
from nanollm_jax.ops.blocks import views


class Seen(NamedTuple):
    """What new tokens may look at: keys and values [B K S H], the position each stands at [B S], negative where there is
    none; how many of them, the last ones, are the new tokens themselves, in their order; and behind how many of the others
    [B] nothing stands that a row's new tokens look at. With scales, [B K S] twice, keys and values are in int8, and stand for
    as many times the scale of their vector, in float32. before gives the keys and values of the first so many of the others
    alone, where there are any beside the new ones: less work than to cut them out of all.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    filled: jax.Array
    own: int
    scales: tuple[jax.Array, jax.Array] | None = None
    before: Callable[[int], tuple[jax.Array, ...]] | None = None


def filled_alone(dtype: Any) -> bool:
    """Does a step of decoding that is traced now read the filled slots of a cache of this dtype alone, however many it has?"""
    return native.wanted() and dtype in (jnp.float32, jnp.int8)


@jax.named_scope("scores")
def dot_product(
    q: jax.Array,
    seen: Seen,
    at: jax.Array,
    window: int | None,
    scale: float | None,
    cap: float | None,
    name: str,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """The mean of the values that each query may see, weighted by how well their keys match.

    q [B T N H], whose tokens stand at positions `at` [B T] -> [B T N H] float32. window, scale, cap and sinks [N] as in
    attention.py; name is that of the layer, for its tags. On a CPU the few tokens of a step of decoding go through the filled
    slots alone: XLA there reads the whole cache, and slowly; and a piece of a prompt looks at no more than the first slots of
    which some are in use (views). On an NVIDIA GPU all tokens go through the filled slots, in 16 bits: XLA there writes down
    all scores. The kernel there has no sinks.
    """
    keys, values, positions, filled, own, scales, first = seen
    before = keys.shape[2] - own

    def plain(
        q: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        at: jax.Array,
        positions: jax.Array,
        filled: jax.Array,
        sinks: jax.Array | None = None,
        scales: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        if scales is not None:
            keys, values = (x * scale[..., None] for x, scale in zip((keys, values), scales, strict=True))
        # what stood in empty slots before may be no number, and 0 times that is none; a step would copy all values
        if own:
            values = jnp.where((positions >= 0)[:, None, :, None], values, 0)
        mask = visible(at, tag(positions, f"{name}.slots"), window)  # [B T S]
        found = tag(scores(q, keys, mask, scale, own, cap), f"{name}.scores")
        return mix(tag(weights(found, own, sinks), f"{name}.weights"), values, own)  # of weights [B K G T S]

    def in_use(
        q: jax.Array, keys: jax.Array, values: jax.Array, at: jax.Array, positions: jax.Array, *rest: Any
    ) -> jax.Array:
        ends = keys[:, :, before:], values[:, :, before:]

        def within(view: int) -> jax.Array:
            assert first is not None
            k, v = (jnp.concatenate(parts, axis=2) for parts in zip(first(view), ends, strict=True))
            return plain(q, k, v, at, jnp.concatenate([positions[:, :view], positions[:, before:]], axis=1), *rest)

        least = jnp.max(rest[0])
        index = sum((least > view).astype(jnp.int32) for view in views(before)[:-1])
        return jax.lax.switch(index, [partial(within, view) for view in views(before)])

    arrays = (q, keys, values, at, positions, filled, sinks, scales)
    how: dict[str, Any] = {"window": window, "scale": scale, "cap": cap, "plain": plain}
    faster: dict[str, Any] = {}
    if first and len(views(before)) > 1:
        faster["cpu"] = in_use
    if not own and filled_alone(keys.dtype):
        faster["cpu"] = partial(native.attention, **how)
    if sinks is None and gpu.takes(q, keys):
        faster["cuda"] = lambda *arrays: gpu.attention(*arrays[:6], own=own, **how)
    return jax.lax.platform_dependent(*arrays, **faster, default=plain) if faster else plain(*arrays)
