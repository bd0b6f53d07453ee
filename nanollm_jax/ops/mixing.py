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

from nanollm_jax.ops import gated_delta, state_space
from nanollm_jax.ops.convolution import convolve
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


def delta(
    p: dict[str, Any], x: jax.Array, memory: Memory, count: jax.Array, mixer: Any, name: str
) -> tuple[jax.Array, Memory]:
    """The gated delta rule, behind a convolution and before a norm and a gate.  x [B T D] -> [B T D]

    p holds win [h y D], of whose y a group has a query, a key, values, as many gates, and for each head how much it corrects
    and how fast it forgets; taps [h z w], decay and decay_bias [h r], norm.scale [j] and wo [D h v].
    """
    i, r = mixer.key, mixer.heads
    query, key, values, gate, rest, real, tail = parts(p, x, memory, count, mixer)
    rate = jax.nn.softplus(rest[..., r:] + single(p["decay_bias"]))
    rate = jnp.where(real, -jnp.exp(single(p["decay"])) * rate, 0)
    beta = jnp.where(real, jax.nn.sigmoid(rest[..., :r]), 0)
    query, key = gated_delta.normal(query) * i**-0.5, gated_delta.normal(key)
    given, state = gated_delta.rule(query, key, values, rate, beta, memory.state)
    given = rms_norm(given.astype(x.dtype), p["norm"]["scale"], mixer.eps).astype(jnp.float32)
    mixed = tag((given.reshape(gate.shape) * jax.nn.silu(gate)).astype(x.dtype), f"{name}.mixed")  # [B T h v]
    return linear_sum(mixed, p["wo"]), Memory(tail, state)


def selective(
    p: dict[str, Any], x: jax.Array, memory: Memory, count: jax.Array, mixer: Any, name: str
) -> tuple[jax.Array, Memory]:
    """A state that fades as each token says, behind a convolution and before a gate and a norm.  x [B T D] -> [B T D]

    p holds win [h y D], of whose y a group has a query, a key, values, as many gates, and for each head how long its token
    lasts; taps [h z w], decay, decay_bias and skip [h r], norm.scale [h v] and wo [D h v].
    """
    query, key, values, gate, rest, real, tail = parts(p, x, memory, count, mixer)
    lasts = jnp.where(real, jax.nn.softplus(rest + single(p["decay_bias"])), 0)  # [B T h r]
    taken, fades = values * lasts[..., None], -jnp.exp(single(p["decay"])) * lasts
    given, state = state_space.rule(query, key, taken, fades, memory.state)
    given = (given + values * single(p["skip"])[..., None]).reshape(gate.shape) * jax.nn.silu(gate)
    given = rms_norm(given, jnp.ones(given.shape[-1]), mixer.eps) * single(p["norm"]["scale"])
    mixed = tag(given.astype(x.dtype), f"{name}.mixed")  # [B T h v]
    return linear_sum(mixed, p["wo"], p.get("wo_bias")), Memory(tail, state)


def parts(p: dict[str, Any], x: jax.Array, memory: Memory, count: jax.Array, mixer: Any) -> tuple[jax.Array, ...]:
    """What a layer with a state makes of its tokens: queries, keys [B T h i], values [B T h r j], all convolved, gates
    [B T h v], what is left of y, which are real [B T 1 1], and the new tail. In float32.
    """
    (B, T, _), i, r, v = x.shape, mixer.key, mixer.heads, mixer.heads * mixer.value
    made = linear(x, p["win"], p.get("win_bias"))  # [B T h y]
    wide, tail = convolve(made[..., : 2 * i + v], memory.tail, p["taps"], p.get("taps_bias"), count)
    wide = jax.nn.silu(wide.astype(jnp.float32)).astype(x.dtype).astype(jnp.float32)
    values, rest = wide[..., 2 * i :].reshape(B, T, -1, r, mixer.value), made[..., 2 * i + v :].astype(jnp.float32)
    real = (jnp.arange(T)[None] < count[:, None])[..., None, None]
    return wide[..., :i], wide[..., i : 2 * i], values, rest[..., :v], rest[..., v:], real, tail


def single(x: jax.Array) -> jax.Array:
    """A parameter of heads beside tokens.  [h r] -> [1 1 h r] in float32"""
    return x.astype(jnp.float32)[None, None]


FORMS: dict[str, Callable[..., tuple[jax.Array, Memory]]] = {
    "convolution": convolution, "gated_delta": delta, "state_space": selective,
}  # fmt: skip
