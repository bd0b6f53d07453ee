"""What was read before and need not be read again: whole pieces of prompts, kept by blocks of P tokens.

The host has a tree: a block is found by the one before it and by its own ids, compared one by one. The device has a pool
of as many blocks as a bound on bytes allows; a hit is copied into the row, so nothing is shared and nothing is counted.
Where the pool is full, the leaf that was used longest ago makes room.

Only what was read as a whole piece is kept, never what decoding wrote: the two differ in their last bits, and an answer
would then depend on what happened to be cached.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import NamedSharding

from nanollm_jax.cache import KVCache, Layer
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.programs import program
from nanollm_jax.engine.slots import State
from nanollm_jax.letters import pytree, spec, static

if TYPE_CHECKING:
    from nanollm_jax.engine.engine import Engine
    from nanollm_jax.engine.rows import Slot


@dataclass
class Block:
    """One block: its place in the pool, the block before it, how many follow it, and a number that no other ever had."""

    uid: int
    place: int
    before: Block | None
    key: tuple[Hashable, tuple[int, ...]]
    followed: int = 0


class Prefixes:
    """Which blocks of P ids stand at which places of a pool of `places`, the least recently used ones first to go."""

    def __init__(self, size: int, places: int) -> None:
        """size is P; with 0 places nothing is ever kept."""
        self.size = size
        self.free = list(range(places))[::-1]
        self.blocks: OrderedDict[tuple[Hashable, tuple[int, ...]], Block] = OrderedDict()
        self.uids = itertools.count()

    def __len__(self) -> int:
        """How many blocks are kept."""
        return len(self.blocks)

    def find(self, root: Hashable, ids: Sequence[int]) -> list[Block]:
        """The blocks that ids begin with, in order. root says in which world they were read: a setting, an adapter, a salt."""
        found: list[Block] = []
        for begin in range(0, len(ids) - self.size + 1, self.size):
            block = self.next(root, found[-1] if found else None, ids[begin : begin + self.size])
            if block is None:
                break
            found.append(block)
        return found

    def next(self, root: Hashable, before: Block | None, ids: Sequence[int]) -> Block | None:
        """The block of these P ids behind another one, None where there is none. It and those before it are used now."""
        found = self.blocks.get(self.key(root, before, ids))
        for block in self.chain(found):  # a block is used no earlier than what follows it
            self.blocks.move_to_end(block.key)
        return found

    def add(self, root: Hashable, before: Block | None, ids: Sequence[int]) -> tuple[Block | None, bool]:
        """The block of these P ids behind another one, and whether it is new: then its place has to be filled.

        None where there is no room, because the pool has no places or every block is followed by another; and where the block
        before was forgotten meanwhile.
        """
        if before is not None and before.key not in self.blocks:
            return None, False
        if (known := self.next(root, before, ids)) is not None:
            return known, False
        place = self.free.pop() if self.free else self.drop(before)
        if place is None:
            return None, False
        key = self.key(root, before, ids)
        self.blocks[key] = Block(next(self.uids), place, before, key)
        if before is not None:
            before.followed += 1
        return self.next(root, before, ids), True

    def drop(self, spared: Block | None) -> int | None:
        """The place of the leaf that was used longest ago, which is forgotten; `spared` is not taken."""
        leaf = next((one for one in self.blocks.values() if not one.followed and one is not spared), None)
        if leaf is None:
            return None
        del self.blocks[leaf.key]
        if leaf.before is not None:
            leaf.before.followed -= 1
        return leaf.place

    def key(self, root: Hashable, before: Block | None, ids: Sequence[int]) -> tuple[Hashable, tuple[int, ...]]:
        """How a block is found."""
        return (("root", root) if before is None else before.uid, tuple(ids))

    def chain(self, block: Block | None) -> list[Block]:
        """A block and those before it, the last one first."""
        found = []
        while block is not None:
            found.append(block)
            block = block.before
        return found


@pytree
class Pool:
    """Blocks of P positions that were read once, of each layer as it keeps them: keys and values [B*K P H] of B blocks, or what
    a recurrent layer remembers at the end of each.
    """

    layers: tuple[Layer, ...]
    size: int = static()


def empty_pool(cache: KVCache, blocks: int, size: int) -> Pool:
    """A pool of so many blocks of `size` positions each, beside this cache."""
    # named, a device would bind every program that takes the pool to it, and compile it again
    placed = lambda letters: None if cache.mesh is None else NamedSharding(cache.mesh, spec(letters))  # noqa: E731
    return Pool(tuple(layer.pool(blocks, size, cache.batch, placed) for layer in cache.layers), size)


@program(donate=("pool",))
def keep(pool: Pool, state: State, row: jax.Array, at: jax.Array, block: jax.Array, *, config: ModelConfig) -> Pool:
    """Copy the positions at, at + 1, .. of R rows to blocks of the pool, past the last for nobody.  row, at and block [R]

    Of a recurrent layer what it remembers now: the rows have just read the last of these positions.
    """
    both: Any = zip(state.cache.layers, pool.layers, strict=True)
    return dataclasses.replace(
        pool, layers=tuple(layer.keep(kept, row, at, block, state.cache.batch) for layer, kept in both)
    )


@program(donate=("state",))
def restore(state: State, pool: Pool, row: jax.Array, at: jax.Array, block: jax.Array, *, config: ModelConfig) -> State:
    """Put blocks of the pool at the positions at, at + 1, .. of R rows, and count them.  row, at and block [R]"""
    both: Any = zip(state.cache.layers, pool.layers, strict=True)
    layers = tuple(layer.restore(kept, row, at, block, state.cache.batch) for layer, kept in both)
    length = state.cache.length.at[row].set(at + pool.size, mode="drop")
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, layers=layers, length=length))


def keep_piece(engine: Engine, slot: Slot) -> None:
    """Keep the piece that a row of an engine has just read as a block of the pool."""
    assert slot.ticket is not None
    root, ids = engine.root(slot.ticket.request, len(slot.text)), slot.text[slot.at : slot.at + engine.piece]
    slot.block, new = engine.prefixes[slot.part].add(root, slot.block, ids)
    slot.keeps = slot.block is not None
    if slot.block is not None and new:
        at, place = slot.one(slot.at), slot.one(slot.block.place, engine.places)  # no place in other parts
        engine.pool = keep(engine.blocks(), engine.state, slot.named(), at, place, config=engine.config)
