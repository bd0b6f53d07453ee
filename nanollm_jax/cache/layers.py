"""How one layer keeps the keys and values of its rows: a plain buffer, a ring where a window is shorter than the cache, or the
latents that both are made of.

All are two buffers [B*K S H], as they are or in 8 bits (rounded.py): rows and heads share an axis because that is the layout
that XLA on CPU updates in place at any batch size; with them apart, a batch of one is copied whole. Slots that hold nothing a
query may see are never seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.cache.rounded import Buffer, keep, name, read, seen
from nanollm_jax.config import ModelConfig
from nanollm_jax.layout import cache_slots
from nanollm_jax.letters import axes, pytree

# the keys and values of the first so many slots of a cache, [B K S H] twice
Before = Callable[[int], tuple[jax.Array, ...]]


def first(*arrays: jax.Array) -> Before:
    """Of keys and values of all slots those of the first ones."""
    return lambda size: tuple(x[:, :, :size] for x in arrays)


@pytree
class Plain:
    """Position p stands in slot p.  k and v [B*K S H]"""

    k: Buffer = axes("B*K S H")
    v: Buffer = axes("B*K S H")

    @property
    def slots(self) -> int:
        """S, how many vectors a row has room for."""
        return self.k.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return self.k.nbytes + self.v.nbytes

    @property
    def kept(self) -> str:
        """How its numbers are kept: a dtype's name."""
        return name(self.k)

    def place(self, positions: jax.Array) -> jax.Array:
        """The slot of each position, of the same shape; S or more where there is none."""
        return positions

    def held(self, length: jax.Array) -> jax.Array:
        """The position that each slot holds, for rows of this length; negative if none.  [B] -> [B S]"""
        slots = jnp.arange(self.slots)[None]
        return jnp.where(slots < length[:, None], slots, -1)

    def used(self, length: jax.Array) -> int:
        """Bytes of the slots that hold something, of rows of this length [B]."""
        held = self.held(length)
        return int((held >= 0).sum()) * self.nbytes // max(held.size, 1)

    def block_nbytes(self, rows: int, size: int) -> int:
        """Bytes of a block of `size` positions of one of so many rows."""
        return self.nbytes // (self.slots * rows) * size

    def forgets(self, filled: int, reach: int, back: int, window: int | None) -> bool:
        """Would a row that has `filled` positions, and had `reach`, miss any of those that it needs behind its first `back`?"""
        return False

    def resized(self, kind: type[Plain], slots: int) -> Plain:
        """The same with so many slots, of this kind; itself where that is what it has."""
        wider = ((0, 0), (0, max(slots - self.slots, 0)), (0, 0))
        sized = lambda x: jnp.pad(x[:, :slots], wider[: x.ndim])  # noqa: E731
        both = self.k, self.v
        return kind(*(both if self.slots == slots else jax.tree.map(sized, both)))

    def heads(self, rows: jax.Array | None, K: int, size: int | None = None) -> tuple[Buffer, Buffer]:
        """Keys and values as they are kept, rows and heads apart, of all rows or of the named ones.  -> [B K S H] twice

        size: of the first so many slots alone. Rows are cut out one by one: XLA on CPU gathers numbers one by one.
        """
        size = self.slots if size is None else size

        def apart(x: jax.Array) -> jax.Array:
            if rows is None:
                return x[:, :size].reshape(x.shape[0] // K, K, size, *x.shape[2:])
            one = lambda row: jax.lax.dynamic_slice(x, (row * K, *[0] * (x.ndim - 1)), (K, size, *x.shape[2:]))  # noqa: E731
            return jnp.stack([one(row) for row in rows])

        return jax.tree.map(apart, (self.k, self.v))

    def as_read(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """New keys and values as they would be read.  [B T K H] -> [B K T H], twice

        What a token sees does not depend on the piece in which it came.
        """
        return seen(self.k, k).swapaxes(1, 2), seen(self.v, v).swapaxes(1, 2)

    def at(self, rows: jax.Array, positions: jax.Array, K: int) -> tuple[Buffer, Buffer]:
        """Keys and values of these positions [R P] of these rows [R], as they are kept.  -> [R K P H] twice

        Of more positions than a ring has slots, only the last ones are what they were.
        """
        heads = rows[:, None, None] * K + jnp.arange(K)[None, :, None]
        return jax.tree.map(lambda x: x.at[heads, self.place(positions)[:, None, :]].get(mode="clip"), (self.k, self.v))

    def write(self, rows: jax.Array | None, k: jax.Array, v: jax.Array, positions: jax.Array, real: jax.Array) -> Plain:
        """Put new tokens into their slots.  rows [B] or None for all, k and v [B T K H], positions and real [B T] -> the same

        A row past the last one and a position past the last slot are dropped.
        """
        return self.put(rows, keep(self.k, k), keep(self.v, v), positions, real)

    def put(self, rows: jax.Array | None, k: Buffer, v: Buffer, positions: jax.Array, real: jax.Array) -> Plain:
        """write of what is in the form of the buffers.  k and v [B T K H]"""
        B, T, K, _ = k.shape
        place = jnp.arange(T)[None]
        # of more real tokens than a ring has slots, the last ones stay: no slot is written twice
        stays = real & (place >= jnp.sum(real, axis=1, keepdims=True) - self.slots)
        slots = jnp.repeat(jnp.where(stays, self.place(positions), self.slots), K, axis=0)
        row = jnp.arange(B) if rows is None else rows
        heads = (row[:, None] * K + jnp.arange(K)[None]).reshape(B * K, 1)
        # A single vector is written twice, once past the end where it is dropped: XLA on CPU makes a slice update of a
        # scatter of one, and that copies the buffer for every token.
        alone = B * K * T == 1
        slots = jnp.concatenate([slots, jnp.full((1, 1), self.slots)], axis=1) if alone else slots

        def written(buffer: jax.Array, new: jax.Array) -> jax.Array:
            new = new.swapaxes(1, 2).reshape(B * K, T, *new.shape[3:])
            new = jnp.repeat(new, 2, axis=1) if alone else new
            return buffer.at[heads, slots].set(new, mode="drop", unique_indices=True)

        k, v = jax.tree.map(written, (self.k, self.v), (k, v))
        return dataclasses.replace(self, k=k, v=v)

    def take(
        self, rows: jax.Array | None, k: jax.Array, v: jax.Array, positions: jax.Array, real: jax.Array
    ) -> tuple[Plain, Before]:
        """write, and the keys and values that were there before; `held` says which these are."""
        new = self.write(rows, k, v, positions, real)
        # the new ones stand behind those
        return new, lambda size: tuple(map(read, new.heads(rows, k.shape[2], size)))

    def pool(self, blocks: int, size: int, rows: int, placed: Callable[[str], Any]) -> Plain:
        """Room for so many blocks of `size` positions of a layer of so many rows: [blocks*K size H] twice."""
        K = self.k.shape[0] // rows
        made = lambda x: jnp.zeros((blocks * K, size, *x.shape[2:]), x.dtype, device=placed("B*K"))  # noqa: E731
        return Plain(*jax.tree.map(made, (self.k, self.v)))

    def keep(self, pool: Plain, row: jax.Array, at: jax.Array, block: jax.Array, rows: int) -> Plain:
        """The pool with the positions at, at + 1, .. of R rows as these blocks of it, past the last for nobody.  all [R]"""
        K = self.k.shape[0] // rows
        found = self.at(row, at[:, None] + jnp.arange(pool.slots)[None], K)
        heads = (block[:, None] * K + jnp.arange(K)[None]).reshape(-1)
        put = lambda old, new: old.at[heads].set(new.reshape(heads.size, *new.shape[2:]), mode="drop")  # noqa: E731
        return Plain(*jax.tree.map(put, (pool.k, pool.v), found))

    def restore(self, pool: Plain, row: jax.Array, at: jax.Array, block: jax.Array, rows: int) -> Plain:
        """The layer with blocks of a pool at the positions at, at + 1, .. of R rows, past the last for nobody.  all [R]"""
        K = self.k.shape[0] // rows
        positions = at[:, None] + jnp.arange(pool.slots)[None]
        heads = block[:, None] * K + jnp.arange(K)[None]
        taken = lambda x: x.at[heads].get(mode="clip").swapaxes(1, 2)  # noqa: E731  # [R P K H]
        k, v = jax.tree.map(taken, (pool.k, pool.v))
        return self.put(row, k, v, positions, jnp.ones_like(positions, bool))


@pytree
class Latents(Plain):
    """Position p stands in slot p, one vector that keys and values are both made of.  k [B*K S H], v [B*K S 0]"""

    def heads(self, rows: jax.Array | None, K: int, size: int | None = None) -> tuple[Buffer, Buffer]:
        """The vectors as they are kept, with rows and heads apart, as keys and as values.  -> [B K S H] twice"""
        k, _ = super().heads(rows, K, size)
        return k, k

    def as_read(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """New vectors as they would be read, as keys and as values.  k [B T K H] -> [B K T H] twice"""
        k, _ = super().as_read(k, v[..., :0])
        return k, k

    def write(self, rows: jax.Array | None, k: jax.Array, v: jax.Array, positions: jax.Array, real: jax.Array) -> Plain:
        """Put new vectors into their slots, k alone: v is the same."""
        return super().write(rows, k, v[..., :0], positions, real)


@pytree
class Ring(Plain):
    """Position p stands in slot p % S: a new token takes the place of one that left the window."""

    def place(self, positions: jax.Array) -> jax.Array:
        """The slot of each position, of the same shape."""
        return positions % self.slots

    def held(self, length: jax.Array) -> jax.Array:
        """The position that each slot holds, for rows of this length; negative if none yet.  [B] -> [B S]

        Length 5, S = 3: slots 0 1 2 hold positions 3 4 2.
        """
        last = length[:, None] - 1
        return last - (last - jnp.arange(self.slots)[None]) % self.slots

    def forgets(self, filled: int, reach: int, back: int, window: int | None) -> bool:
        """Were any of the last `window` positions before `back` overwritten by those up to `reach`?"""
        assert window is not None
        return reach > self.slots and back < reach - self.slots + window - 1

    def take(
        self, rows: jax.Array | None, k: jax.Array, v: jax.Array, positions: jax.Array, real: jax.Array
    ) -> tuple[Plain, Before]:
        """write, and the keys and values that were there before: new ones may stand in their places.

        Of some rows, what they hold is cut out, written to, and put back: XLA would keep a copy of all rows otherwise.
        """
        B, _, K, _ = k.shape
        if rows is None:
            return self.write(rows, k, v, positions, real), first(*map(read, self.heads(rows, K)))
        begins = [row * K for row in rows]

        def rows_from(begins: list[Any]) -> Any:
            cut = lambda x: jnp.stack([jax.lax.dynamic_slice_in_dim(x, at, K) for at in begins])  # noqa: E731
            return jax.tree.map(cut, (self.k, self.v))

        # in a cond of their own: XLA would slice again, wherever somebody looks at them, and keep that copy for it
        last = self.k.shape[0] - K  # nobody's row is the last one, put back as it was
        cut = jax.lax.cond(
            jnp.any(real), lambda: rows_from(begins), lambda: rows_from([jnp.minimum(at, last) for at in begins])
        )
        flat = Ring(*jax.tree.map(lambda x: x.reshape(B * K, *x.shape[2:]), cut)).write(None, k, v, positions, real)

        def back(buffer: jax.Array, new: jax.Array) -> jax.Array:
            for n, begin in reversed(list(enumerate(begins))):  # nobody's first: the last row may be somebody's too
                buffer = jax.lax.dynamic_update_slice_in_dim(buffer, new[n * K : (n + 1) * K], begin, 0)
            return buffer

        return Ring(*jax.tree.map(back, (self.k, self.v), (flat.k, flat.v))), first(read(cut[0]), read(cut[1]))


def kinds(config: ModelConfig, capacity: int, spare: int = 0) -> list[type[Plain]]:
    """The kind of each layer with keys in a cache of this capacity, whose rings have so many slots to spare."""
    whole = Plain if config.latent is None else Latents
    return [Ring if capacity > S else whole for S in cache_slots(config, capacity, spare)]


def shapes(config: ModelConfig, batch: int, capacity: int, spare: int = 0) -> list[tuple[int, int, int]]:
    """The shape of each layer's two buffers, [B*K S H]. Inside the program of one member of a mesh: of the heads it holds."""
    heads, slots = [config.heads_of(layer) for layer in config.layers], cache_slots(config, capacity, spare)
    members = collectives.members()
    return [(batch * (one.num_kv_heads // members), S, one.head_dim) for one, S in zip(heads, slots, strict=True)]
