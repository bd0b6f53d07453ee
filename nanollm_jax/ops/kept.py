"""What a weight can be: an array, or something that is kept otherwise and does what is asked of a weight.

A further kind (an adapter on top of another weight) is one class with these methods; nothing else asks what it is.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np


@runtime_checkable
class Kept(Protocol):
    """A weight [*O *I] that is no array; a pytree of the arrays that it is made of."""

    @property
    def dtype(self) -> np.dtype:
        """That of the activations that it is for."""

    @property
    def name(self) -> str:
        """Of its row in dtypes.py."""

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""

    @property
    def ndim(self) -> int:
        """How many axes the weight has."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""

    def reshape(self, outputs: int, inputs: int) -> Any:
        """[*O *I] -> [O I], the same kind."""

    def times(self, x: jax.Array) -> jax.Array:
        """Every row of x with every row of the weight.  x [R I], weight [O I] -> [R O] float32"""

    def rows(self, ids: jax.Array) -> jax.Array:
        """One row per id, the last for ids past it.  weight [V D], ids [B T] -> [B T D]"""

    def letters(self, axes: str) -> Any:
        """The axis letters of each of its arrays, in the same kind, where the weight's are `axes`."""


Weight = jax.Array | Kept


def rows_of(part: jax.Array, ids: jax.Array) -> jax.Array:
    """One row per id, the last for ids past it, of an array that a kind is made of.  part [V ...], ids [B T] -> [B T ...]

    A single one is looked up twice: XLA on a TPU makes a slice of it, and for that copies a table in 8 bits for every token.
    """
    if ids.size > 1:
        return part.at[ids].get(mode="clip")
    return part.at[jnp.concatenate([ids, ids], axis=1)].get(mode="clip")[:, :1]


def letters_of(weight: Any, axes: str) -> Any:
    """The axis letters of a weight's arrays, in a tree like its own: of an array, the weight's."""
    return weight.letters(axes) if isinstance(weight, Kept) else axes


def parted(weight: Any, inputs: int) -> Any:
    """The same weight, so that a device of a mesh can hold so many inputs of its last axis: a kind with groups divides them."""
    return weight.parted(inputs) if hasattr(weight, "parted") else weight


def some(weight: Any, begin: Any, size: int) -> Any:
    """So many outputs of a weight, of any kind.  [O I] -> [size I]"""
    if hasattr(weight, "some"):
        return weight.some(begin, size)
    return jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, begin, size), weight)


@jax.jit
def decoded(weight: Any) -> jax.Array:
    """The numbers of a weight, of any kind but an adapted one, in float32."""
    return weight.decoded() if hasattr(weight, "decoded") else weight.astype(jnp.float32)


def name_of(weight: Any) -> str:
    """The name of the dtype in which a weight is kept."""
    return weight.name if isinstance(weight, Kept) else np.dtype(weight.dtype).name
