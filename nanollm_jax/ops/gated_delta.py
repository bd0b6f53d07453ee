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

from nanollm_jax.ops import state_space
from nanollm_jax.ops.linear import contract


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
    return state_space.in_chunks(step, chunk, (q, k, v, g, beta), state)


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
    v, beta = (jnp.moveaxis(x, 1, 3) for x in (v, beta))  # [B h r c ..]
    stays, between = state_space.fading(g)
    alike = contract("Bchi,Bdhi->Bhcd", k, k)[:, :, None] * between * beta[..., None]
    # what each token corrects, before and because of the state that the chunk began with
    asked = jnp.moveaxis(k, 1, 2)[:, :, None] * jnp.exp(stays)[..., None]  # [B h r c i]
    both = jnp.concatenate([v, asked], axis=-1) * beta[..., None]
    both = solve_triangular(alike, both, lower=True, unit_diagonal=True)
    j = v.shape[-1]
    wrong = both[..., :j] - contract("Bhrci,Bhrij->Bhrcj", both[..., j:], state)
    given, state = state_space.taken_in(q, k, wrong, stays, between, state)
    return jnp.moveaxis(given, 3, 1), state
