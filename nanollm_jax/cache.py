"""The key/value cache: what attention remembers of the tokens that were seen. Only this file knows how it is stored.

Each layer has one buffer for keys and one for values, [B*K S H]: rows and heads share an axis because that is the
layout that XLA on CPU updates in place at any batch size; with them apart, a batch of one is copied whole.
Slot s of a row holds position s. Slots at or past the row's length hold leftovers that no query sees.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.config import ModelConfig, check_count, resolve_dtype
from nanollm_jax.errors import RequestError


@flax.struct.dataclass
class KVCache:
    """Keys and values of every layer, k and v: L x [B*K S H], and how many positions of each row are filled, length [B]."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: jax.Array

    @property
    def batch(self) -> int:
        """B, the number of rows."""
        return self.length.shape[0]

    @property
    def capacity(self) -> int:
        """S, how many positions each row has room for."""
        return self.k[0].shape[1]


def init_cache(config: ModelConfig, batch: int, capacity: int, dtype: Any = "auto") -> KVCache:
    """An empty cache for `batch` rows of up to `capacity` tokens each.

    Raises ConfigError for a count below 1 or an unknown dtype, RequestError for more positions than the model has.
    """
    check_count("batch", batch)
    check_count("capacity", capacity)
    if capacity > config.max_positions:
        raise RequestError(
            f"a cache of {capacity} positions is more than the model's {config.max_positions}; "
            f"ask for capacity={config.max_positions} or less."
        )
    shape = (batch * config.num_kv_heads, capacity, config.head_dim)
    dtype = resolve_dtype(dtype)
    empty = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))  # noqa: E731
    return KVCache(k=empty(), v=empty(), length=jnp.zeros(batch, jnp.int32))


def check_room(cache: KVCache, tokens: jax.Array | np.ndarray, new: Any, config: ModelConfig) -> None:
    """Raise RequestError unless tokens [B T] are ids of the model, one row per row of the cache, with room for `new` more.

    Looks at values only where they are known: inside jit they are not, and the caller has to see to it.
    """
    if tokens.ndim != 2 or tokens.shape[0] != cache.batch or tokens.shape[1] == 0:
        raise RequestError(
            f"tokens have shape {list(tokens.shape)}; expected [{cache.batch} T], a row per row of the cache."
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise RequestError(f"tokens have dtype {tokens.dtype}; expected whole numbers.")
    known = [np.asarray(value) for value in (tokens, cache.length, new) if not isinstance(value, jax.core.Tracer)]
    if len(known) < 3:
        return
    ids, length, more = known
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise RequestError(f"tokens go from {ids.min()} to {ids.max()}; expected 0 to {config.vocab_size - 1}.")
    full = int((length + more).max())
    if full > cache.capacity:
        raise RequestError(
            f"{full} positions do not fit the cache of {cache.capacity}; shorten the text or make it with capacity={full}."
        )


def append(cache: KVCache, layer: int, k: jax.Array, v: jax.Array) -> KVCache:
    """Write one layer's new keys and values behind each row's length.  k, v [B T K H]

    The length stays as it is until every layer has written (advance). What falls past the capacity is dropped.
    """
    B, T, K, H = k.shape
    rows = jnp.arange(B * K)[:, None]
    slots = jnp.repeat(cache.length, K)[:, None] + jnp.arange(T)[None, :]
    # A single vector is written twice, once past the end where it is dropped: XLA on CPU makes a slice update of a
    # scatter of one, and that copies the buffer for every token.
    alone = B * K * T == 1
    slots = jnp.concatenate([slots, jnp.full((1, 1), cache.capacity)], axis=1) if alone else slots

    def write(buffer: jax.Array, new: jax.Array) -> jax.Array:
        new = new.swapaxes(1, 2).reshape(B * K, T, H).astype(buffer.dtype)
        new = jnp.repeat(new, 2, axis=1) if alone else new
        return buffer.at[rows, slots].set(new, mode="drop", unique_indices=True)

    return dataclasses.replace(
        cache,
        k=(*cache.k[:layer], write(cache.k[layer], k), *cache.k[layer + 1 :]),
        v=(*cache.v[:layer], write(cache.v[layer], v), *cache.v[layer + 1 :]),
    )


def view(cache: KVCache, layer: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One layer's keys and values, and the position that each slot holds: k, v [B K S H], positions [S]."""
    rows, S, H = cache.k[layer].shape
    B = cache.batch
    shape = (B, rows // B, S, H)
    return cache.k[layer].reshape(shape), cache.v[layer].reshape(shape), jnp.arange(S)


def advance(cache: KVCache, new: int | jax.Array) -> KVCache:
    """Count `new` more positions in every row; an int, or one number per row [B]."""
    return dataclasses.replace(cache, length=cache.length + new)


def rewind(cache: KVCache, length: int) -> KVCache | None:
    """The cache as it was when every row had `length` positions; None where that is more than it holds, or gone.

    Slots past the length are never seen and are written again, so going back is counting back.
    """
    if not 0 <= length <= int(np.asarray(cache.length).min()):
        return None
    return dataclasses.replace(cache, length=jnp.full(cache.batch, length, jnp.int32))


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The same cache with room for `capacity` positions a row, copied. Raises RequestError for less than it has."""
    more = capacity - cache.capacity
    if more < 0:
        raise RequestError(f"a cache of {cache.capacity} positions cannot shrink to {capacity}; make another.")
    pad = lambda buffer: jnp.pad(buffer, ((0, 0), (0, more), (0, 0)))  # noqa: E731
    return dataclasses.replace(cache, k=tuple(map(pad, cache.k)), v=tuple(map(pad, cache.v)))
