"""Attention of a few new tokens over a cache, in C."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nanollm_jax import collectives


def attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, at: jax.Array, positions: jax.Array, filled: jax.Array,
    sinks: jax.Array | None = None,
    *, window: int | None, scale: float | None, cap: float | None, plain: Callable[..., jax.Array],
) -> jax.Array:  # fmt: skip
    """What dot_product gives, of keys and values in float32.  -> [B T N H]

    q [B T N H], keys and values [B K S H], at [B T], positions [B S], filled [B], sinks [N]. plain is a function of the same
    arrays, which is differentiated in place of this.
    """
    how = jnp.array([q.shape[-1] ** -0.5 if scale is None else scale, cap or 0, window or 0], jnp.float32)

    @jax.custom_jvp
    def fused(*arrays: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(q.shape, jnp.float32)
        sinks = arrays[6].astype(jnp.float32) if len(arrays) > 6 else jnp.full(q.shape[2], -jnp.inf)
        made = jax.ffi.ffi_call("nanollm_attention", shape, vmap_method="sequential")(*arrays[:6], sinks, how)
        return collectives.varied(made, jax.typeof(arrays[1]))  # each member of a mesh has its own rows and heads

    @fused.defjvp
    def derivative(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(plain, primals, tangents)

    more = () if sinks is None else (sinks,)
    return fused(q.astype(jnp.float32), keys, values, at, positions, filled, *more)
