"""Attention: every query looks at the keys it may see and takes the mean of their values, weighted by how well they
match.  Vaswani et al. 2017, section 3.2; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nanollm_jax.ops.linear import contract


@jax.named_scope("scores")
def visible(queries: jax.Array, keys: jax.Array, window: int | None = None) -> jax.Array:
    """May the query at one position see the key at another?  queries [B T], keys [S] -> [B T S] bool

    Never the future; with a window, only the last `window` positions, its own included.
    Row at position 3, window 2: it sees keys 2 and 3.
    """
    distance = queries[:, :, None] - keys[None, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


@jax.named_scope("scores")
def weights(q: jax.Array, k: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """How much each query takes from each key.  q [B T N H], k [B K S H], mask [B T S] -> [B K G T S] float32, sums to 1

    Query head n belongs to key head n // G. Masked scores become the lowest float, not -inf: a padding row past the
    window's end may see nothing at all, and softmax over only -inf would be NaN.
    """
    B, T, N, H = q.shape
    K = k.shape[1]
    scores = scale * contract("BTKGH,BKSH->BKGTS", q.reshape(B, T, K, N // K, H), k)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


@jax.named_scope("scores")
def mix(weight: jax.Array, v: jax.Array) -> jax.Array:
    """The weighted means of the values.  weight [B K G T S], v [B K S H] -> [B T N H] float32"""
    B, K, G, T, S = weight.shape
    H = v.shape[-1]
    # T moves outwards after the product: asked of the product itself, XLA on CPU copies all values for it at one row
    mixed = contract("BKGTS,BKSH->BKGTH", weight.astype(v.dtype), v)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)
