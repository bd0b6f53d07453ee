"""Layers that mix a text's tokens through a state: what they remember of it has one size, however long the text is.

Each takes the new tokens [B T D], what its rows remember of those before, and how many [B] of the new ones are real: the rest
is padding behind them, and leaves no trace. mixers.py has their records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as tag

from nanollm_jax.ops.linear import linear, linear_sum


class Memory(NamedTuple):
    """What a layer remembers of B rows: of their last u tokens [B u h ..], and of all of them [B h ..] float32, or None."""

    tail: jax.Array
    state: jax.Array | None


@jax.named_scope("recurrent")
def mix(
    p: dict[str, Any], x: jax.Array, memory: Memory, count: jax.Array, mixer: Any, name: str
) -> tuple[jax.Array, Memory]:
    """What a layer of this kind of mixer gives for its new tokens, and what it remembers behind them.  x [B T D] -> [B T D]

    name is that of the layer, for its tags.
    """
    return FORMS[mixer.kind](p, x, memory, count, mixer, name)


def convolution(
    p: dict[str, Any], x: jax.Array, memory: Memory, count: jax.Array, mixer: Any, name: str
) -> tuple[jax.Array, Memory]:
    """A gate, a convolution of each channel along the text, another gate.  x [B T D] -> [B T D]

    p holds win [t h D], whose three t are the first gate, the other one and what passes both, taps [h w] and down [D h].
    """
    wide = linear(x, p["win"], p.get("win_bias"))  # [B T t h]
    before, after, passes = (wide[:, :, t] for t in range(3))
    mixed, tail = convolve(before * passes, memory.tail, p["taps"], p.get("taps_bias"), count)
    mixed = tag(after * mixed, f"{name}.convolved")
    return linear_sum(mixed, p["down"], p.get("down_bias")), Memory(tail, None)


def convolve(
    x: jax.Array, tail: jax.Array, taps: jax.Array, bias: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Each channel's last w tokens, weighted.  x [B T *h], tail [B w-1 *h], taps [*h w], bias [*h] -> x's shape, tail's shape

    The tail are the tokens before x; the new one is that of the first count [B] of x.
    w = 3: y[t] = a x[t-2] + b x[t-1] + c x[t].
    """
    T, w = x.shape[1], taps.shape[-1]
    joined = jnp.concatenate([tail, x.astype(tail.dtype)], axis=1)
    wide, weights = joined.astype(jnp.float32), taps.astype(jnp.float32)[None, None]
    made = sum((wide[:, place : place + T] * weights[..., place] for place in range(w)), jnp.float32(0))
    made = made if bias is None else made + bias.astype(jnp.float32)[None, None]
    last = count[:, None] + jnp.arange(w - 1)[None]  # of the joined ones
    last = last.reshape(*last.shape, *(1,) * (x.ndim - 2))
    return made.astype(x.dtype), jnp.take_along_axis(joined, last, axis=1)


FORMS: dict[str, Callable[..., tuple[jax.Array, Memory]]] = {"convolution": convolution}
