"""Normalisation: bring every vector of the residual stream to the same size before it is used.

config.py names the kinds: a function here, and the parameters that it takes behind x.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from nanollm_jax import collectives


@jax.named_scope("norm")
@partial(jax.jit, static_argnames=("eps", "offset", "heads"))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float = 0.0, heads: int | None = None) -> jax.Array:
    """Divide each vector by its root mean square, then stretch it.  x [... *D], scale [*D] -> [... *D]

    A scale [N H] takes all heads of a token for one vector, a scale [H] each head for itself. offset is added to scale.
    heads is how many of the N count, where a mesh has made them up with zeros; None means all.
    Computed in float32 whatever the dtype of x, because the mean of D squares loses bits in bfloat16.
    Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
    """
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=tuple(range(-scale.ndim, 0)), keepdims=True)
    if scale.ndim > 1:
        mean_square = collectives.pmean(mean_square)  # a mesh splits the heads
        mean_square *= 1 if heads is None else scale.shape[0] * collectives.members() / heads
    return (x32 * jax.lax.rsqrt(mean_square + eps) * (along_last(scale, x) + offset)).astype(x.dtype)


def unscaled(x: jax.Array, eps: float) -> jax.Array:
    """rms_norm without a scale.  x [... D] -> [... D]"""
    return rms_norm(x, jnp.ones(x.shape[-1], jnp.float32), eps)


@jax.named_scope("norm")
@partial(jax.jit, static_argnames=("eps", "offset"))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """Centre each vector, divide it by its deviation, stretch and shift it.  x [... D], scale, bias [D] -> [... D]

    offset is added to scale. Computed in float32 whatever the dtype of x.
    Ba, Kiros & Hinton 2016, "Layer Normalization", section 3.
    """
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps) * (along_last(scale, x) + offset) + along_last(bias, x)).astype(
        x.dtype
    )


@jax.named_scope("norm")
@partial(jax.jit, static_argnames=("eps", "offset"))
def centred_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """layer_norm without a shift.  x [... D], scale [D] -> [... D]"""
    return layer_norm(x, scale, jnp.zeros_like(scale), eps, offset)


def heads(
    p: dict[str, dict[str, jax.Array]],
    q: jax.Array,
    k: jax.Array,
    eps: float,
    offset: float,
    counted: tuple[int, int] | None,
) -> tuple[jax.Array, jax.Array]:
    """Every query and key head brought to one size, or all of a token's together.  [B T N H], [B T K H] -> the same

    p holds the scales, [H] or those of all heads; of keys where there are any. counted is how many of the heads are the model's
    own, where a mesh has more.
    """
    N, K = counted or (None, None)
    q = rms_norm(q, p["q_norm"]["scale"], eps, offset, N)
    return q, rms_norm(k, p["k_norm"]["scale"], eps, offset, K) if "k_norm" in p else k


def clip(x: jax.Array, limit: float | None) -> jax.Array:
    """x between -limit and limit, or as it is without a limit.  [...] -> [...]"""
    return x if limit is None else jnp.clip(x, -limit, limit)


def stretch(x: jax.Array, scale: jax.Array | None) -> jax.Array:
    """x times one number, or as it is without one.  x [... D], scale [1] -> [... D]"""
    return x if scale is None else x * along_last(scale, x).astype(x.dtype)


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """[*D] -> [1 ... 1 *D] in float32, with as many axes as x."""
    return vector.astype(jnp.float32).reshape((1,) * (x.ndim - vector.ndim) + vector.shape)
