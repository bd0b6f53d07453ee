"""A convolution along the text: what each channel says of its last few tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
