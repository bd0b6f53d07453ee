"""Attention of a few new tokens over a cache, in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax import collectives


def attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, at: jax.Array, positions: jax.Array, filled: jax.Array,
    sinks: jax.Array | None = None, scales: tuple[jax.Array, jax.Array] | None = None,
    *, window: int | None, scale: float | None, cap: float | None, plain: Callable[..., jax.Array],
) -> jax.Array:  # fmt: skip
    """What dot_product gives, of keys and values in float32, or in int8 with scales.  -> [B T N H]

    q [B T N H], keys and values [B K S H], at [B T], positions [B S], filled [B], sinks [N], scales [B K S] twice. plain is a
    function of the same arrays, which is differentiated in place of this.
    """
    how = jnp.array([q.shape[-1] ** -0.5 if scale is None else scale, cap or 0, window or 0], jnp.float32)

    @jax.custom_jvp
    def fused(*arrays: Any) -> jax.Array:
        *six, sinks, scales = arrays
        shape = jax.ShapeDtypeStruct(q.shape, jnp.float32)
        sinks = jnp.full(q.shape[2], -jnp.inf, jnp.float32) if sinks is None else sinks.astype(jnp.float32)
        name = "nanollm_attention" if scales is None else "nanollm_attention_s8"
        made = jax.ffi.ffi_call(name, shape, vmap_method="sequential")(*six, sinks, how, *(scales or ()))
        return collectives.varied(made, jax.typeof(arrays[1]))  # each member of a mesh has its own rows and heads

    @fused.defjvp
    def derivative(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(plain, primals, tangents)

    whole = (x.astype(jnp.int32) for x in (at, positions, filled))  # of 64 bits where JAX is told to take these
    return fused(q.astype(jnp.float32), keys, values, *whole, sinks, scales)
