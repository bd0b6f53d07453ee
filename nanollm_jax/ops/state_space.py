"""A state that fades and takes in: what a recurrent layer is made of whose tokens do not depend on each other.

    S = exp(g) S + k v        forget, take in
    o = q S                   look up

Dao & Gu 2024, arXiv:2405.21060 (Mamba 2). A token of decoding is these two lines. A prompt goes in chunks (section 6), of which
all is matrix products. The gated delta rule takes in what it corrects, in place of v.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.ops.linear import contract

CHUNK = 64  # tokens that go together
Outcome = tuple[jax.Array, jax.Array]  # what is looked up, and the state behind it


@jax.jit
def rule(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, state: jax.Array) -> Outcome:
    """What T tokens look up, and the state behind them.  q, k [B T h i], v [B T h r j], g [B T h r], state [B h r i j]

    All in float32. g is the logarithm of what stays, at most 0. A token with g = 0 and v = 0 leaves the state as it is.
    -> [B T h r j], [B h r i j]
    """
    return in_chunks(step, chunk, (q, k, v, g), state)


def in_chunks(
    step: Callable[..., Outcome], chunk: Callable[..., Outcome], tokens: tuple[jax.Array, ...], state: jax.Array
) -> Outcome:
    """A step where there is one token, and else chunks one after the other, zeros behind the last.  tokens [B T ..] each"""
    T = tokens[0].shape[1]
    if T == 1:
        given, state = step(*(x[:, 0] for x in tokens), state)
        return given[:, None], state
    size = min(T, CHUNK)
    n = -(-T // size)

    def chunks(x: jax.Array) -> jax.Array:
        """[B T ..] -> [n B size ..]"""
        x = jnp.pad(x, ((0, 0), (0, n * size - T), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], n, size, *x.shape[2:]), 1, 0)

    def one(state: jax.Array, of_chunk: tuple[jax.Array, ...]) -> Outcome:
        given, state = chunk(*of_chunk, state)
        return state, given

    state = collectives.varied(state, jax.typeof(tokens[1]))  # one that a member's program made is the same for all
    state, given = jax.lax.scan(one, state, tuple(map(chunks, tokens)))
    given = jnp.moveaxis(given, 0, 1)
    return given.reshape(given.shape[0], n * size, *given.shape[3:])[:, :T], state


def step(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, state: jax.Array) -> Outcome:
    """rule of one token.  q, k [B h i], v [B h r j], g [B h r], state [B h r i j] -> [B h r j], [B h r i j]"""
    state = state * jnp.exp(g)[..., None, None] + k[:, :, None, :, None] * v[..., None, :]
    return jnp.sum(q[:, :, None, :, None] * state, axis=3), state


def chunk(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, state: jax.Array) -> Outcome:
    """rule of c tokens together.  q, k [B c h i], v [B c h r j], g [B c h r], state [B h r i j] -> [B c h r j], [B h r i j]"""
    stays, between = fading(g)
    given, state = taken_in(q, k, jnp.moveaxis(v, 1, 3), stays, between, state)
    return jnp.moveaxis(given, 3, 1), state


def fading(g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What stays of the chunk's beginning at each token, its logarithm, and of an earlier token d at a later one c.

    Each sum is taken over its own tokens: as a difference of two sums from the beginning on, it would keep no more digits than
    those have, and one token that forgets all (g = -1000) would leave 1e-4 of error in what those behind it hand on.
    g [B c h r] -> [B h r c], [B h r c d]
    """
    g = jnp.moveaxis(g, 1, 3)
    behind = jnp.tril(jnp.broadcast_to(g[..., None], (*g.shape, g.shape[3])), -1)  # [B h r c d], zeros from d on back
    return jnp.cumsum(g, axis=3), jnp.tril(jnp.exp(jnp.cumsum(behind, axis=3)))


def taken_in(
    q: jax.Array, k: jax.Array, v: jax.Array, stays: jax.Array, between: jax.Array, state: jax.Array
) -> Outcome:
    """chunk, given how all fades.  q, k [B c h i], v [B h r c j], state [B h r i j] -> [B h r c j], [B h r i j]"""
    looks = jnp.moveaxis(q, 1, 2)[:, :, None] * jnp.exp(stays)[..., None]
    among = contract("Bchi,Bdhi->Bhcd", q, k)[:, :, None] * between
    given = contract("Bhrci,Bhrij->Bhrcj", looks, state) + contract("Bhrcd,Bhrdj->Bhrcj", among, v)
    left = jnp.moveaxis(k, 1, 2)[:, :, None] * between[..., -1, :, None]
    return given, state * jnp.exp(stays[..., -1:, None]) + contract("Bhrci,Bhrcj->Bhrij", left, v)
