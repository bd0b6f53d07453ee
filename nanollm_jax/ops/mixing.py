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

from nanollm_jax.ops import gated_delta
from nanollm_jax.ops.linear import linear, linear_sum
from nanollm_jax.ops.norm import rms_norm


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


@jax.named_scope("recurrent")
def delta(
    p: dict[str, Any], x: jax.Array, memory: Memory, count: jax.Array, mixer: Any, name: str
) -> tuple[jax.Array, Memory]:
    """The gated delta rule, behind a convolution and before a norm and a gate.  x [B T D] -> [B T D]

    p holds win [h y D], of whose y a group has a query, a key, values, as many gates, and for each head how much it corrects
    and how fast it forgets; taps [h z w], decay and decay_bias [h r], norm.scale [j] and wo [D h v].
    """
    (B, T, _), i, r, j, v = x.shape, mixer.key, mixer.heads, mixer.value, mixer.heads * mixer.value
    made = linear(x, p["win"])  # [B T h y]
    wide, tail = convolve(made[..., : 2 * i + v], memory.tail, p["taps"], None, count)
    wide = jax.nn.silu(wide.astype(jnp.float32)).astype(x.dtype).astype(jnp.float32)
    heads = lambda part: part.reshape(*part.shape[:3], r, -1)  # noqa: E731  # [B T h (r ..)] -> [B T h r ..]
    gate, rest = heads(made[..., 2 * i + v : 2 * i + 2 * v]), made[..., 2 * i + 2 * v :].astype(jnp.float32)
    real = (jnp.arange(T)[None] < count[:, None])[..., None, None]  # what is padding corrects and forgets nothing
    rate = jax.nn.softplus(rest[..., r:] + p["decay_bias"].astype(jnp.float32)[None, None])
    rate = jnp.where(real, -jnp.exp(p["decay"].astype(jnp.float32))[None, None] * rate, 0)
    beta = jnp.where(real, jax.nn.sigmoid(rest[..., :r]), 0)
    query, key = gated_delta.normal(wide[..., :i]) * i**-0.5, gated_delta.normal(wide[..., i : 2 * i])
    given, state = gated_delta.rule(query, key, heads(wide[..., 2 * i :]), rate, beta, memory.state)
    given = rms_norm(given.astype(x.dtype), p["norm"]["scale"], mixer.eps).astype(jnp.float32)
    given = (given * jax.nn.silu(gate.astype(jnp.float32))).astype(x.dtype)
    mixed = tag(given.reshape(B, T, -1, r * j), f"{name}.mixed")  # [B T h v]
    return linear_sum(mixed, p["wo"]), Memory(tail, state)


FORMS: dict[str, Callable[..., tuple[jax.Array, Memory]]] = {"convolution": convolution, "gated_delta": delta}
