"""A model's cache: its layers, how far each row is filled, and the few things that are done to all of them together."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from nanollm_jax import collectives
from nanollm_jax.cache import recurrent, rounded
from nanollm_jax.cache.layers import Plain, kinds, shapes
from nanollm_jax.cache.recurrent import Nothing, Recurrent, Shared
from nanollm_jax.checks import check_count
from nanollm_jax.config import ModelConfig
from nanollm_jax.dtypes import check_kept, resolve_dtype
from nanollm_jax.errors import RequestError
from nanollm_jax.layout import cache_slots, check_goes_back
from nanollm_jax.letters import axes, nbytes, pytree, spec, static
from nanollm_jax.ops.dot_product import Seen, filled_alone
from nanollm_jax.ops.mixing import Memory

Layer = Plain | Recurrent | Nothing


@pytree
class KVCache:
    """Keys and values of every layer, L x [B*K S H] twice, or what a recurrent one remembers in their place; and how many
    positions of each row are filled, length [B].

    rows [R] names the rows that the next tokens are for, and length is theirs, where it is not every row (select).
    Static: capacity is how many positions a row has room for. fresh says that nothing was written yet, so that a first
    piece of tokens need not look at the buffers: init_cache says so, and writing takes it back. mesh is the one that the
    buffers are spread over: each device has its own rows' and heads' vectors, in the same layout as on a single device.
    lent {layer: what it gave} is there between two layers only, of those at whose keys later ones look (Shared).
    spare is how many of the last tokens of a block may be taken back by another length: rings have so many slots more
    than their window, so that those tokens take nobody's place who is still seen.
    """

    layers: tuple[Layer, ...]
    length: jax.Array = axes("B")
    rows: jax.Array | None = axes("B", default=None)
    lent: dict[int, Seen] | None = axes("B", default=None)
    capacity: int = static(default=0)
    fresh: bool = static(default=False)
    spare: int = static(default=0)
    mesh: Mesh | None = static(default=None)

    @property
    def batch(self) -> int:
        """How many rows the next tokens are for: all B of the buffers, or the selected ones."""
        return self.length.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def kept(self) -> str:
        """How keys and values are kept: a dtype's name."""
        remember = [layer for layer in self.layers if not isinstance(layer, Nothing)]
        return next((layer.kept for layer in remember if isinstance(layer, Plain)), remember[0].kept)

    def __repr__(self) -> str:
        kinds = [type(layer).__name__.lower() for layer in self.layers]
        counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return (
            f"KVCache({self.batch} rows of {self.capacity} positions, {counted} layers, {self.kept}, "
            f"{nbytes(self.layers)})"
        )


def init_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    dtype: Any = "auto",
    mesh: Mesh | None = None,
    *,
    spare: int = 0,
    kept: str = "auto",
) -> KVCache:
    """An empty cache for `batch` rows of up to `capacity` tokens each.

    dtype is that of the weights; the cache has it too, but for bfloat16 on CPU, where it is float32: XLA there converts
    a whole 16-bit buffer to float32 and back for every token. On a mesh each device makes its own part. spare is how many
    tokens of a block may be taken back (KVCache). kept "int8" keeps keys and values in 8 bits, with a scale for each token and
    head; what recurrent layers remember stays as it is.
    Raises ConfigError for a count below 1, an unknown dtype or way to keep, RequestError for more positions than the model has,
    for rows that the mesh does not divide, and for spare in a model with recurrent layers, which take nothing back.
    """
    check_count("batch", batch)
    check_count("capacity", capacity)
    if capacity > config.max_positions:
        raise RequestError(
            f"a cache of {capacity} positions is more than the model's {config.max_positions}; "
            f"ask for capacity={config.max_positions} or less."
        )
    if spare:
        check_goes_back(config)
    heads = sorted({config.heads_of(layer).num_kv_heads for layer in config.layers})
    if mesh is not None and (batch % mesh.shape["dp"] or any(one % mesh.shape["tp"] for one in heads)):
        raise RequestError(
            f"a cache of {batch} rows and {' or '.join(map(str, heads))} key/value heads does not divide over "
            f"{dict(mesh.shape)}; make the rows a multiple of {mesh.shape['dp']}, and take the config of the model on the mesh."
        )
    dtype = dtype_of(resolve_dtype(dtype))
    check_kept(kept)
    placed = lambda letters: None if mesh is None else NamedSharding(mesh, spec(letters))  # noqa: E731
    layers: tuple[Layer, ...] = tuple(
        kind(
            *(rounded.empty((*shape[:2], H), dtype, kept, placed) for H in (shape[2], (config.vectors - 1) * shape[2]))
        )
        if layer.keeps
        else Shared(of=layer.keys_of)
        if layer.keys_of is not None
        else recurrent.empty(layer.mixer, batch, dtype, placed)
        for layer, kind, shape in zip(
            config.layers, kinds(config, capacity, spare), shapes(config, batch, capacity, spare), strict=True
        )
    )
    length = jnp.zeros(batch, jnp.int32, device=placed("B"))
    return KVCache(layers, length, capacity=capacity, fresh=True, spare=spare, mesh=mesh)


def dtype_of(dtype: Any) -> np.dtype:
    """That of a cache of weights of this dtype, see init_cache."""
    return jnp.dtype(jnp.float32 if dtype == jnp.bfloat16 and jax.default_backend() == "cpu" else dtype)


def steps_look_at_filled(dtype: Any) -> bool:
    """Do steps of decoding here read the filled slots of a cache of these weights alone, however many it has?

    What is kept in 8 bits is read as it is where it stands for float32 (rounded.parts), and is then no other case.
    """
    return filled_alone(dtype_of(dtype))


def resize(cache: KVCache, config: ModelConfig, capacity: int) -> KVCache:
    """The same cache with another capacity, which no row is longer than. Rings that stay what they are are handed through."""
    sizes = (config, capacity, cache.spare)
    made = tuple(
        layer.resized(kind, S) for layer, kind, S in zip(cache.layers, kinds(*sizes), cache_slots(*sizes), strict=True)
    )
    return dataclasses.replace(cache, layers=made, capacity=capacity)


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


@jax.named_scope("cache")
def extend(cache: KVCache, layer: int, k: jax.Array, v: jax.Array, count: jax.Array) -> tuple[KVCache, Seen]:
    """Take one layer's new keys and values behind each row's length, and give back all that the new tokens may look at.

    k, v [B T K H], of which the first count [B] of each row are real. The length stays as it is until every layer has
    written (advance). What falls past the capacity is dropped.

    A single token looks at the buffers with itself in them. Several look at what was there before, and at themselves: in a
    ring the last ones overwrite what the first still sees; and a first piece gives the same whatever the capacity is. No
    more than there are slots to spare for look at the buffers as a single one does: a token of such a block has the same bits
    whichever it is, as every key is summed in its own slot whether it is of this block or of one before.
    """
    B, T, K, H = k.shape
    old = cache.layers[layer]
    if isinstance(old, Shared):
        return cache, (cache.lent or {})[old.of]
    assert isinstance(old, Plain)
    positions = cache.length[:, None] + jnp.arange(T)[None]  # [B T]
    real = (jnp.arange(T)[None] < count[:, None]) & (positions < cache.capacity)
    own, scales, before = old.as_read(k, v), None, None
    if 1 + cache.spare >= T or cache.fresh:
        new = old.write(cache.rows, k, v, positions, real)
        keys, values, scales = (*own, None) if cache.fresh else rounded.parts(*new.heads(cache.rows, K))
        stand = positions if cache.fresh else new.held(cache.length + count)
        filled = cache.length + count
    else:
        new, before = old.take(cache.rows, k, v, positions, real)
        keys, values = (jnp.concatenate(both, axis=2) for both in zip(before(old.slots), own, strict=True))
        stand = jnp.concatenate([old.held(cache.length), positions], axis=1)
        filled = cache.length
    filled = jnp.where(count > 0, jnp.minimum(filled, old.slots), 0)
    recent = T if 1 + cache.spare < T or cache.fresh else 0
    seen = Seen(keys, values, stand, filled, recent, scales, before)
    if any(isinstance(one, Shared) and one.of == layer for one in cache.layers):
        cache = dataclasses.replace(cache, lent={**(cache.lent or {}), layer: seen})
    return changed(cache, layer, new), seen


@jax.named_scope("cache")
def recall(cache: KVCache, layer: int) -> Memory:
    """What a recurrent layer remembers of the rows that the next tokens are for."""
    old = cache.layers[layer]
    assert isinstance(old, Recurrent)
    return old.recall(cache.rows, cache.length, cache.fresh)


@jax.named_scope("cache")
def remember(cache: KVCache, layer: int, memory: Memory, count: jax.Array) -> KVCache:
    """Take in what it remembers now, of those rows of which any tokens were real, count [B]."""
    old = cache.layers[layer]
    assert isinstance(old, Recurrent)
    return changed(cache, layer, old.write(cache.rows, memory, count))


def changed(cache: KVCache, layer: int, new: Layer) -> KVCache:
    """The cache with another layer in the place of one."""
    return dataclasses.replace(cache, layers=(*cache.layers[:layer], new, *cache.layers[layer + 1 :]))


def advance(cache: KVCache, count: jax.Array) -> KVCache:
    """Count the new positions of every row, [B]."""
    return dataclasses.replace(cache, length=cache.length + count, fresh=False, lent=None)


def select(cache: KVCache, rows: jax.Array, fresh: bool = False) -> KVCache:
    """The same buffers, for tokens of these rows [R] alone; put_back takes the result in. fresh: nothing is in those rows.

    A row past the last one is nobody's, and what is written there is dropped. Such rows come last, each with its own number.
    """
    return dataclasses.replace(cache, rows=rows, length=cache.length.at[rows].get(mode="clip"), fresh=fresh)


def put_back(cache: KVCache, part: KVCache) -> KVCache:
    """The whole cache after tokens of some of its rows were written: part is what became of select's."""
    length = cache.length.at[part.rows].set(part.length, mode="drop")
    return dataclasses.replace(part, length=length, rows=None, fresh=False)


def repeat(cache: KVCache, rows: jax.Array) -> KVCache:
    """A cache of its own for these rows [R] of another, one as often as it is named: what begins alike goes on apart."""
    B, R = cache.length.shape[0], rows.shape[0]

    def of_rows(buffer: jax.Array) -> jax.Array:
        K = buffer.shape[0] // B
        return buffer.reshape(B, K, *buffer.shape[1:])[rows].reshape(R * K, *buffer.shape[1:])

    return dataclasses.replace(cache, layers=jax.tree.map(of_rows, cache.layers), length=cache.length[rows])
