"""The key/value cache: what attention remembers of the tokens that were seen. Only this file knows how it is stored.

Each layer has one buffer for keys and one for values, [B*K S H]: rows and heads share an axis because that is the
layout that XLA on CPU updates in place at any batch size; with them apart, a batch of one is copied whole.
Position p stands in slot p, or in slot p % S of a layer whose window is shorter than the cache: there S is the window,
and a new token takes the place of the one that just left it. Slots that hold nothing a query may see are never seen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nanollm_jax import collectives
from nanollm_jax.checks import check_count
from nanollm_jax.config import ModelConfig, resolve_dtype
from nanollm_jax.errors import RequestError

ROWS, HEADS = PartitionSpec("dp"), PartitionSpec(("dp", "tp"))  # how a mesh splits [B ...], and [B*K S H]


@flax.struct.dataclass
class KVCache:
    """Keys and values of every layer, k and v: L x [B*K S H], and how many positions of each row are filled, length [B].

    Static: capacity is how many positions a row has room for, S of every layer that is not a ring. fresh says that nothing
    was written yet, so that a first piece of tokens need not look at the buffers; False is right for every cache. mesh
    is the one that the buffers are spread over: their first axis along both of its axes, so that each device has its
    own rows' and heads' vectors, in the same layout as on a single device.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: jax.Array
    capacity: int = flax.struct.field(pytree_node=False)
    fresh: bool = flax.struct.field(pytree_node=False, default=False)
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def batch(self) -> int:
        """B, the number of rows."""
        return self.length.shape[0]


def shapes(config: ModelConfig, batch: int, capacity: int) -> list[tuple[int, int, int]]:
    """The shape of each layer's buffers, [B*K S H]: S is the capacity, or the layer's window where that is shorter.

    Inside the program of one member of a mesh: of the heads that it holds.
    """
    slots = [min(capacity, config.window(layer) or capacity) for layer in range(config.num_layers)]
    heads = config.num_kv_heads // collectives.members()
    return [(batch * heads, S, config.head_dim) for S in slots]


def init_cache(
    config: ModelConfig, batch: int, capacity: int, dtype: Any = "auto", mesh: Mesh | None = None
) -> KVCache:
    """An empty cache for `batch` rows of up to `capacity` tokens each.

    dtype is that of the weights; the cache has it too, but for bfloat16 on CPU, where it is float32: XLA there converts
    a whole 16-bit buffer to float32 and back for every token. On a mesh each device makes its own part.
    Raises ConfigError for a count below 1 or an unknown dtype, RequestError for more positions than the model has and
    for rows that the mesh does not divide.
    """
    batch, capacity = check_count("batch", batch), check_count("capacity", capacity)
    if capacity > config.max_positions:
        raise RequestError(
            f"a cache of {capacity} positions is more than the model's {config.max_positions}; "
            f"ask for capacity={config.max_positions} or less."
        )
    if mesh is not None and (batch % mesh.shape["dp"] or config.num_kv_heads % mesh.shape["tp"]):
        raise RequestError(
            f"a cache of {batch} rows and {config.num_kv_heads} key/value heads does not divide over {dict(mesh.shape)}; "
            f"make the rows a multiple of {mesh.shape['dp']}, and take the config of the model on the mesh."
        )
    dtype = resolve_dtype(dtype)
    if dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        dtype = jnp.dtype(jnp.float32)
    heads, rows = (None if mesh is None else NamedSharding(mesh, split) for split in (HEADS, ROWS))
    empty = lambda: tuple(jnp.zeros(shape, dtype, device=heads) for shape in shapes(config, batch, capacity))  # noqa: E731
    return KVCache(k=empty(), v=empty(), length=jnp.zeros(batch, jnp.int32, device=rows), capacity=capacity, mesh=mesh)


def grow(cache: KVCache, config: ModelConfig, capacity: int) -> KVCache:
    """The same cache with more room. Layers that are rings already stay as they are, the others are copied one by one."""
    new = [S for _, S, _ in shapes(config, cache.batch, capacity)]
    enlarge = lambda buffers: tuple(  # noqa: E731
        jnp.pad(old, ((0, 0), (0, S - old.shape[1]), (0, 0))) if old.shape[1] != S else old
        for old, S in zip(buffers, new, strict=True)
    )
    return dataclasses.replace(cache, k=enlarge(cache.k), v=enlarge(cache.v), capacity=capacity)


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
    known = [
        collectives.whole(value) for value in (tokens, cache.length, new) if not isinstance(value, jax.core.Tracer)
    ]
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


def extend(
    cache: KVCache, layer: int, k: jax.Array, v: jax.Array, count: jax.Array
) -> tuple[KVCache, jax.Array, jax.Array, jax.Array]:
    """Take one layer's new keys and values behind each row's length, and give back all that the new tokens may look at.

    k, v [B T K H], of which the first count [B] of each row are real -> cache, keys and values [B K S H], and the position
    that each of them stands at [B S], negative where there is none. The length stays as it is until every layer has
    written (advance). What falls past the capacity is dropped.
    """
    B, T, K, H = k.shape
    S = cache.k[layer].shape[1]
    ring = cache.capacity > S
    new = cache.length[:, None] + jnp.arange(T)[None]  # [B T]
    k, v = (x.swapaxes(1, 2).reshape(B * K, T, H).astype(cache.k[layer].dtype) for x in (k, v))
    written = write(cache, layer, k, v, new, count)
    if cache.fresh:
        return written, k.reshape(B, K, T, H), v.reshape(B, K, T, H), new
    if not ring:
        return written, *heads(written, layer, B), jnp.broadcast_to(jnp.arange(S)[None], (B, S))
    if T == 1:
        return written, *heads(written, layer, B), held(cache.length + count, S)
    # The first of several tokens still sees what the last ones overwrite: all look at the ring as it was, and at the new.
    keys, values = (
        jnp.concatenate([old, x.reshape(B, K, T, H)], axis=2)
        for old, x in zip(heads(cache, layer, B), (k, v), strict=True)
    )
    return written, keys, values, jnp.concatenate([held(cache.length, S), new], axis=1)


def held(length: jax.Array, S: int) -> jax.Array:
    """The position that each slot of a ring holds, for rows of this length; negative if none yet.  [B] -> [B S]

    Length 5, S = 3: slots 0 1 2 hold positions 3 4 2.
    """
    last = length[:, None] - 1
    return last - (last - jnp.arange(S)[None]) % S


def heads(cache: KVCache, layer: int, B: int) -> tuple[jax.Array, jax.Array]:
    """One layer's keys and values with rows and heads apart, [B K S H]."""
    rows, S, H = cache.k[layer].shape
    return tuple(x[layer].reshape(B, rows // B, S, H) for x in (cache.k, cache.v))  # type: ignore[return-value]


@jax.named_scope("cache")
def write(cache: KVCache, layer: int, k: jax.Array, v: jax.Array, positions: jax.Array, count: jax.Array) -> KVCache:
    """Put one layer's real new tokens into their slots.  k, v [B*K T H], positions [B T], count [B]"""
    rows, T, H = k.shape
    B, S = cache.batch, cache.k[layer].shape[1]
    place = jnp.arange(T)[None]
    # of more real tokens than a ring has slots, the last ones stay: no slot is written twice
    real = (place < count[:, None]) & (place >= count[:, None] - S)
    slots = jnp.where(real, positions % S if cache.capacity > S else positions, S)
    slots = jnp.repeat(slots, rows // B, axis=0)
    # A single vector is written twice, once past the end where it is dropped: XLA on CPU makes a slice update of a
    # scatter of one, and that copies the buffer for every token.
    alone = rows * T == 1
    slots = jnp.concatenate([slots, jnp.full((1, 1), S)], axis=1) if alone else slots

    def put(buffer: jax.Array, new: jax.Array) -> jax.Array:
        new = jnp.repeat(new, 2, axis=1) if alone else new
        return buffer.at[jnp.arange(rows)[:, None], slots].set(new, mode="drop", unique_indices=True)

    return dataclasses.replace(
        cache,
        k=(*cache.k[:layer], put(cache.k[layer], k), *cache.k[layer + 1 :]),
        v=(*cache.v[:layer], put(cache.v[layer], v), *cache.v[layer + 1 :]),
    )


def advance(cache: KVCache, count: jax.Array) -> KVCache:
    """Count the new positions of every row, [B]."""
    return dataclasses.replace(cache, length=cache.length + count, fresh=False)


def rewind(cache: KVCache, length: int) -> KVCache | None:
    """The cache as it was when every row had `length` positions; None where that is more than it holds, or gone.

    Slots past the length are never seen and are written again, so going back is counting back. A ring that has begun to
    overwrite what left its window cannot go back at all.
    """
    lengths = np.asarray(cache.length)
    if not 0 <= length <= lengths.min():
        return None
    slots = min(buffer.shape[1] for buffer in cache.k)
    if slots < cache.capacity and lengths.max() > max(slots, length):
        return None
    return dataclasses.replace(cache, length=jnp.full(cache.batch, length, jnp.int32))
