"""Attention: every query looks at the keys it may see and takes the mean of their values, weighted by how well they
match.  Vaswani et al. 2017, section 3.2; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import pairwise

import jax
import jax.numpy as jnp

from nanollm_jax.ops.linear import contract

BLOCK = 128  # queries whose scores are computed together
SLOTS = 256  # slots of a cache that are summed together


def split_heads(qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values out of one product.  [B T K Q H] -> q [B T N H], k and v [B T K H]

    Q = G + 2: each key/value head comes behind the G query heads that it serves.
    """
    B, T, K, Q, H = qkv.shape
    return qkv[:, :, :, :-2].reshape(B, T, K * (Q - 2), H), qkv[:, :, :, -2], qkv[:, :, :, -1]


@jax.named_scope("scores")
@partial(jax.jit, static_argnames="window")
def visible(queries: jax.Array, keys: jax.Array, window: int | None = None) -> jax.Array:
    """May the query at one position see the key at another?  queries [B T], keys [B S] -> [B T S] bool

    Never the future; with a window, only the last `window` positions, its own included. A negative position is no key.
    Row at position 3, window 2: it sees keys 2 and 3.
    """
    distance = queries[:, :, None] - keys[:, None, :]
    seen = (distance >= 0) & (keys >= 0)[:, None, :]
    return seen if window is None else seen & (distance < window)


@jax.named_scope("scores")
@partial(jax.jit, static_argnames=("scale", "own", "cap"))
def weights(
    q: jax.Array, k: jax.Array, mask: jax.Array, scale: float | None = None, own: int = 0, cap: float | None = None
) -> jax.Array:
    """How much each query takes from each key.  q [B T N H], k [B K S H], mask [B T S] -> [B K G T S] float32, sums to 1

    Query head n belongs to key head n // G. scale None is 1/sqrt(H). Masked scores become the lowest float, not -inf: a
    padding row past the window's end may see nothing at all, and softmax over only -inf would be NaN.
    A cap keeps every score between -cap and cap (soft_cap). own is T where the last T keys are the queries' own tokens, so that
    no query looks at keys behind its block's own; 0 where they are not.
    """
    (B, T, N, H), (K, S) = q.shape, k.shape[1:3]
    scale = H**-0.5 if scale is None else scale
    before, rows = S - own, []
    for begin, end in blocks(T):
        stop = before + end if own else S
        block = q[:, begin:end].reshape(B, end - begin, K, N // K, H)
        scores = scale * contract("BTKGH,BKSH->BKGTS", block, k[:, :, :stop])
        scores = soft_cap(scores, cap)
        scores = jnp.where(mask[:, None, None, begin:end, :stop], scores, jnp.finfo(jnp.float32).min)
        # softmax, with its sum taken as mix takes its own
        exponents = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        total = reduce(jnp.add, (jnp.sum(part, axis=(4, 5)) for part in in_blocks(exponents, 4, before)))
        rows.append(jnp.pad(exponents / total[..., None], ((0, 0),) * 4 + ((0, S - stop),)))
    return jnp.concatenate(rows, axis=3)


@jax.named_scope("scores")
@partial(jax.jit, static_argnames="own")
def mix(weight: jax.Array, v: jax.Array, own: int = 0) -> jax.Array:
    """The weighted means of the values.  weight [B K G T S], v [B K S H] -> [B T N H] float32"""
    B, K, G, T, S = weight.shape
    H = v.shape[-1]
    before, means = S - own, []
    for begin, end in blocks(T):
        stop = before + end if own else S
        part = weight[:, :, :, begin:end, :stop].astype(v.dtype)
        parts = zip(in_blocks(part, 4, before), in_blocks(v[:, :, :stop], 2, before), strict=True)
        # T moves outwards after the product: asked of the product itself, XLA on CPU copies all values for it at one row
        block = reduce(jnp.add, (jnp.sum(contract("BKGTCS,BKCSH->BKCGTH", *part), axis=2) for part in parts))
        means.append(block.transpose(0, 3, 1, 2, 4).reshape(B, end - begin, K * G, H))
    return jnp.concatenate(means, axis=1)


def in_blocks(x: jax.Array, axis: int, before: int) -> list[jax.Array]:
    """The parts in which a sum over slots is taken.  [.. S ..] -> the cache's slots and the tokens' own, each [.. C S ..]

    The first `before` slots are the cache's: in blocks of SLOTS where there are more. Blocks behind the last filled one add
    exact zeros, so a sum has the same bits whatever the capacity is.
    """

    def cut(begin: int, end: int) -> jax.Array:
        size = end - begin
        block = SLOTS if end <= before and size % SLOTS == 0 else size
        part = jax.lax.slice_in_dim(x, begin, end, axis=axis)
        return part.reshape(*x.shape[:axis], size // block, block, *x.shape[axis + 1 :])

    ends = [0, min(before, x.shape[axis]), x.shape[axis]]
    return [cut(begin, end) for begin, end in pairwise(ends) if begin < end]


def clip(x: jax.Array, limit: float | None) -> jax.Array:
    """x between -limit and limit, or as it is without a limit.  [...] -> [...]"""
    return x if limit is None else jnp.clip(x, -limit, limit)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap): x while it is small, never beyond cap; x itself without a cap.  [...] -> [...]

    Bello et al. 2016, arXiv:1611.09940, section 5 (logit clipping).
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


def blocks(T: int) -> list[tuple[int, int]]:
    """Where each block of queries begins and ends. XLA sees through the padding and cutting above: what weights puts
    together for mix is never in memory as a whole, and a block's scores stay in the processor's cache.
    """
    return [(begin, min(begin + BLOCK, T)) for begin in range(0, T, BLOCK)]
