"""Attention: every query looks at the keys it may see and takes the mean of their values, weighted by how well they
match.  Vaswani et al. 2017, section 3.2; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp

from nanollm_jax.ops.blocks import blocks, in_blocks
from nanollm_jax.ops.linear import contract


def split_heads(
    x: jax.Array, gated: bool = False, beside: int = 2
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Queries, keys, values and gates out of one product.  [B T K Q H] -> q [B T N H], k and v [B T K H], gate as q or None

    Behind the G query heads, gated with a gate behind each, come their key and value, beside 2, or one that is both, beside 1.
    With beside 0 there are queries alone, and k and v have no heads, [B T 0 H].
    """
    B, T, K, Q, H = x.shape
    R = Q - beside
    own = x if beside else x[:, :, :0]
    q, k, v = x[:, :, :, :R], own[:, :, :, -beside], own[:, :, :, -1]
    if not gated:
        return q.reshape(B, T, K * R, H), k, v, None
    pairs = q.reshape(B, T, K * R // 2, 2, H)
    return pairs[..., 0, :], k, v, pairs[..., 1, :]


def let_through(mixed: jax.Array, gate: jax.Array | None) -> jax.Array:
    """What heads give, times the sigmoid of a gate if there is one.  [B T N H] float32.  Qiu et al. 2025, arXiv:2505.06708"""
    return mixed if gate is None else mixed * jax.nn.sigmoid(gate.astype(jnp.float32))


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
def scores(
    q: jax.Array, k: jax.Array, mask: jax.Array, scale: float | None = None, own: int = 0, cap: float | None = None
) -> jax.Array:
    """How well each query matches each key.  q [B T N H], k [B K S H], mask [B T S] -> [B K G T S] float32

    Query head n belongs to key head n // G. scale None is 1/sqrt(H). Masked scores become the lowest float, not -inf: a
    padding row past the window's end may see nothing at all, and softmax over only -inf would be NaN.
    A cap keeps every score between -cap and cap (soft_cap). own is T where the last T keys are the queries' own tokens, so that
    no query looks at keys behind its block's own; 0 where they are not.
    """
    (B, T, N, H), (K, S) = q.shape, k.shape[1:3]
    scale = H**-0.5 if scale is None else scale
    lowest, rows = jnp.finfo(jnp.float32).min, []
    for begin, end in blocks(T):
        stop = S - own + end if own else S
        block = q[:, begin:end].reshape(B, end - begin, K, N // K, H)
        found = soft_cap(scale * contract("BTKGH,BKSH->BKGTS", block, k[:, :, :stop]), cap)
        found = jnp.where(mask[:, None, None, begin:end, :stop], found, lowest)
        rows.append(jnp.pad(found, ((0, 0),) * 4 + ((0, S - stop),), constant_values=lowest))
    return jnp.concatenate(rows, axis=3)


@jax.named_scope("scores")
@partial(jax.jit, static_argnames="own")
def weights(scores: jax.Array, own: int = 0, sinks: jax.Array | None = None) -> jax.Array:
    """How much each query takes from each key: a softmax, with its sum taken as mix takes its own.  [B K G T S] -> the same

    sinks [N] is one more score for each query head, of nothing: what it takes is missing from the others, which then sum to
    less than 1.  OpenAI 2025, arXiv:2508.10925; Xiao et al. 2023, arXiv:2309.17453.
    """
    (K, G, T, S), rows = scores.shape[1:], []
    before = S - own
    sink = None if sinks is None else sinks.astype(jnp.float32).reshape(1, K, G, 1)
    for begin, end in blocks(T):
        stop = before + end if own else S
        block = scores[:, :, :, begin:end, :stop]
        most = jnp.max(block, axis=-1) if sink is None else jnp.maximum(jnp.max(block, axis=-1), sink)
        exponents = jnp.exp(block - most[..., None])
        total = reduce(jnp.add, (jnp.sum(part, axis=(4, 5)) for part in in_blocks(exponents, 4, before)))
        total = total if sink is None else total + jnp.exp(sink - most)
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


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap): x while it is small, never beyond cap; x itself without a cap.  [...] -> [...]

    Bello et al. 2016, arXiv:1611.09940, section 5 (logit clipping).
    """
    return x if cap is None else cap * jnp.tanh(x / cap)
