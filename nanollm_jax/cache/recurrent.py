"""How a layer without keys and values keeps what it remembers: a state of each row, of one size however long its text is.

It goes forwards only. What it has read of a text cannot be taken back, so a row goes on exactly where it stands, or from the
end of a piece at which its state was kept, or is read anew. A layer that is an MLP alone remembers nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.letters import axes, of, pytree, static
from nanollm_jax.mixers import Mixer
from nanollm_jax.ops.mixing import Memory


@pytree
class Recurrent:
    """What B rows remember: of their last tokens, tail [B u h ..], and where there is one a state of all, [B h ..] float32."""

    tail: jax.Array = axes("B u h")
    state: jax.Array | None = axes("B h", default=None)

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.tail.nbytes + (0 if self.state is None else self.state.nbytes)

    @property
    def kept(self) -> str:
        """How its numbers are kept: a dtype's name. The state is float32 whatever that is."""
        return self.tail.dtype.name

    def held(self, length: jax.Array) -> jax.Array:
        """The position that each slot holds: there are no slots.  [B] -> [B 0]"""
        return jnp.zeros((length.shape[0], 0), jnp.int32)

    def used(self, length: Any) -> int:
        """Bytes that hold something, of rows of this length [B]."""
        return int((length > 0).sum()) * self.nbytes // len(length)

    def block_nbytes(self, rows: int, size: int) -> int:
        """Bytes of a block of `size` positions of one of so many rows: the state at its end."""
        return self.nbytes // rows

    def forgets(self, filled: int, reach: int, back: int, window: int | None) -> bool:
        """Would a row that has `filled` positions miss any that it needs behind its first `back`? It cannot go back."""
        return back not in (0, filled)

    def resized(self, kind: Any, slots: int) -> Recurrent:
        """The same: no capacity changes it."""
        return self

    def recall(self, rows: jax.Array | None, length: jax.Array, fresh: bool) -> Memory:
        """What is remembered of all rows, or of the named ones [R]; nothing of one that has read nothing yet."""

        def one(x: jax.Array) -> jax.Array:
            if fresh:
                return jnp.zeros_like(x, shape=(length.shape[0], *x.shape[1:]))
            found = x if rows is None else x.at[rows].get(mode="clip")
            return jnp.where((length == 0).reshape(-1, *(1,) * (x.ndim - 1)), 0, found)

        return Memory(*jax.tree.map(one, (self.tail, self.state)))

    def write(self, rows: jax.Array | None, memory: Memory, count: jax.Array) -> Recurrent:
        """Take in what rows remember now. One that has read nothing, count 0, and one past the last stay as they are."""

        def one(old: jax.Array, new: jax.Array) -> jax.Array:
            new = new.astype(old.dtype)
            if rows is None:
                return jnp.where((count > 0).reshape(-1, *(1,) * (old.ndim - 1)), new, old)
            return old.at[jnp.where(count > 0, rows, old.shape[0])].set(new, mode="drop")

        return dataclasses.replace(
            self, tail=one(self.tail, memory.tail), state=jax.tree.map(one, self.state, memory.state)
        )

    def pool(self, blocks: int, size: int, rows: int, placed: Callable[[str], Any]) -> Recurrent:
        """Room for what is remembered at the ends of so many blocks."""

        def made(x: jax.Array, letters: str) -> jax.Array:
            return jnp.zeros((blocks, *x.shape[1:]), x.dtype, device=placed(letters))

        return jax.tree.map(made, self, of(self))

    def keep(self, pool: Recurrent, row: jax.Array, at: jax.Array, block: jax.Array, rows: int) -> Recurrent:
        """The pool with what R rows [R] remember now, as blocks [R] of it, past the last for nobody."""
        return jax.tree.map(lambda old, x: old.at[block].set(x.at[row].get(mode="clip"), mode="drop"), pool, self)

    def restore(self, pool: Recurrent, row: jax.Array, at: jax.Array, block: jax.Array, rows: int) -> Recurrent:
        """What R rows [R] remember at the ends of these blocks [R] of a pool, put back; past the last row for nobody."""
        return jax.tree.map(lambda x, kept: x.at[row].set(kept.at[block].get(mode="clip"), mode="drop"), self, pool)


@pytree
class Nothing:
    """What a layer remembers through which each token goes by itself. It does what the others do, with nothing."""

    nbytes: ClassVar[int] = 0

    def held(self, length: jax.Array) -> jax.Array:
        """The position that each slot holds: there are no slots.  [B] -> [B 0]"""
        return jnp.zeros((length.shape[0], 0), jnp.int32)

    def used(self, length: Any) -> int:
        """No bytes."""
        return 0

    def block_nbytes(self, rows: int, size: int) -> int:
        """No bytes."""
        return 0

    def forgets(self, filled: int, reach: int, back: int, window: int | None) -> bool:
        """It misses nothing, wherever a row goes back to."""
        return False

    def resized(self, kind: Any, slots: int) -> Nothing:
        """The same."""
        return self

    def pool(self, blocks: int, size: int, rows: int, placed: Callable[[str], Any]) -> Nothing:
        """Room for nothing."""
        return self

    def keep(self, pool: Nothing, row: jax.Array, at: jax.Array, block: jax.Array, rows: int) -> Nothing:
        """The pool, with nothing more in it."""
        return pool

    def restore(self, pool: Nothing, row: jax.Array, at: jax.Array, block: jax.Array, rows: int) -> Nothing:
        """The same."""
        return self


@pytree
class Shared(Nothing):
    """What a layer remembers that looks at the keys and values of an earlier one: which one that is."""

    of: int = static()


def empty(mixer: Mixer | None, batch: int, dtype: Any, placed: Any) -> Recurrent | Nothing:
    """Zeros for so many rows, or nothing where no mixer needs any. placed(letters) says where an array with these axes lies.
    Inside the program of one member of a mesh: of the heads or channels that it holds.
    """
    if mixer is None:
        return Nothing()
    members = collectives.members()

    def made(shape: tuple[int, ...], letters: str, dtype: Any) -> jax.Array:
        split = letters.split().index("h") - 1
        own = tuple(size // members if axis == split else size for axis, size in enumerate(shape))
        return jnp.zeros((batch, *own), dtype, device=placed(letters))

    state = None if mixer.state is None else made(mixer.state, "B h", jnp.float32)
    return Recurrent(made(mixer.tail, "B u h", dtype), state)
