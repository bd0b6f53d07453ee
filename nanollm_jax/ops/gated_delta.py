"""The gated delta rule: a state maps keys to values; each token lets some of it fade, and corrects what it says of its own key.

    S = exp(g) S                      forget
    S = S + k (beta (v - k S))        correct what the state says of k, by as much as beta
    o = q S                           look up

Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464. A token of decoding is these three lines. A prompt goes in chunks (section
3.3): the corrections of a chunk depend on each other through a triangular system, and all else is matrix products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from nanollm_jax import collectives
from nanollm_jax.ops.linear import contract

CHUNK = 64  # tokens whose corrections are solved together


def normal(x: jax.Array) -> jax.Array:
    """Each vector at length 1.  [.. i] -> [.. i]"""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


@jax.jit
def rule(
    q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, beta: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What T tokens look up, and the state behind them.  q, k [B T h i], v [B T h r j], g, beta [B T h r], state [B h r i j]

    All in float32. g is the logarithm of what stays, at most 0. A token with g = 0 and beta = 0 leaves the state as it is.
    -> [B T h r j], [B h r i j]
    """
    T = q.shape[1]
    if T == 1:
        given, state = step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], state)
        return given[:, None], state
    size = min(T, CHUNK)
    n = -(-T // size)

    def chunks(x: jax.Array) -> jax.Array:
        """[B T ..] -> [n B size ..], zeros behind the last."""
        x = jnp.pad(x, ((0, 0), (0, n * size - T), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], n, size, *x.shape[2:]), 1, 0)

    def one(state: jax.Array, of_chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, g, beta = of_chunk
        given, state = chunk(q, k, v, g, beta, state)
        return state, given

    state = collectives.varied(state, jax.typeof(k))  # one that was made inside a member's program is the same for all
    state, given = jax.lax.scan(one, state, tuple(map(chunks, (q, k, v, g, beta))))
    given = jnp.moveaxis(given, 0, 1)
    return given.reshape(given.shape[0], n * size, *given.shape[3:])[:, :T], state


def step(
    q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, beta: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """rule of one token.  q, k [B h i], v [B h r j], g, beta [B h r] -> [B h r j], [B h r i j]"""
    state = state * jnp.exp(g)[..., None, None]
    wrong = v - jnp.sum(k[:, :, None, :, None] * state, axis=3)
    state = state + k[:, :, None, :, None] * (beta[..., None] * wrong)[..., None, :]
    return jnp.sum(q[:, :, None, :, None] * state, axis=3), state


def chunk(
    q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, beta: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """rule of c tokens together.  q, k [B c h i], v [B c h r j], g, beta [B c h r] -> [B c h r j], [B h r i j]"""
    c = q.shape[1]
    v, beta = (jnp.moveaxis(x, 1, 3) for x in (v, beta))  # [B h r c ..]
    stays = jnp.cumsum(jnp.moveaxis(g, 1, 3), axis=3)  # from the chunk's beginning on, its logarithm
    between = stays[..., :, None] - stays[..., None, :]  # of an earlier token d at a later one c
    earlier = jnp.arange(c)[:, None] >= jnp.arange(c)[None]
    between = jnp.exp(jnp.where(earlier[None, None, None], between, -jnp.inf))  # [B h r c d]
    alike = contract("Bchi,Bdhi->Bhcd", k, k)[:, :, None] * between * beta[..., None]
    # what each token corrects, before and because of the state that the chunk began with
    asked = jnp.moveaxis(k, 1, 2)[:, :, None] * jnp.exp(stays)[..., None]  # [B h r c i]
    both = jnp.concatenate([v, asked], axis=-1) * beta[..., None]
    both = solve_triangular(alike, both, lower=True, unit_diagonal=True)
    j = v.shape[-1]
    wrong = both[..., :j] - contract("Bhrci,Bhrij->Bhrcj", both[..., j:], state)
    looks = jnp.moveaxis(q, 1, 2)[:, :, None] * jnp.exp(stays)[..., None]
    among = contract("Bchi,Bdhi->Bhcd", q, k)[:, :, None] * between
    given = contract("Bhrci,Bhrij->Bhrcj", looks, state) + contract("Bhrcd,Bhrdj->Bhrcj", among, wrong)
    last = stays[..., -1:]
    left = jnp.moveaxis(k, 1, 2)[:, :, None] * jnp.exp(last - stays)[..., None]
    state = state * jnp.exp(last)[..., None] + contract("Bhrci,Bhrcj->Bhrij", left, wrong)
    return jnp.moveaxis(given, 3, 1), state
