"""Weights as numbers in groups: a few inputs of an output share a scale, and where they are not centred an offset.

A weight is scale * number + offset, the number whole, from -8 to 7 or from -128 to 127, a float of 8 bits, or one of 16 in a
table. int4 keeps the first; with a zero point z, as others publish it, scale * (n - z) has the offset -scale * z.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from nanollm_jax.ops.groupwise_product import times
from nanollm_jax.ops.kept import rows_of
from nanollm_jax.ops.nibbles import pack, unpack


@partial(
    jax.tree_util.register_dataclass, data_fields=("values", "scale", "offset"), meta_fields=("bits", "dtype", "table")
)
@dataclass(frozen=True)
class Groupwise:
    """In place of a weight [*O *I] for activations in dtype. groupwise_making.py makes them, of NumPy's arrays too.

    values  8 bits: int8 or floats [*O *I]. 4 bits: uint8, the last axis halved, numbers + 8 as nibbles.py puts them
    scale   [*O *I] in any float dtype, the last axis divided by the size of a group; offset  None, or an array like it
    table   what the numbers from -8 to 7 stand for, where they are places in one
    """

    values: jax.Array
    scale: jax.Array
    offset: jax.Array | None
    bits: int
    dtype: np.dtype
    table: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """Of its row in dtypes.py, or of a form that only checkpoints have."""
        return f"{'int' if self.whole else 'fp'}{self.bits}"

    @property
    def whole(self) -> bool:
        """Are its numbers whole ones, and none that stand for others?"""
        return self.table is None and self.values.dtype in (np.int8, np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return (*self.values.shape[:-1], self.values.shape[-1] * 8 // self.bits)

    @property
    def ndim(self) -> int:
        """How many axes the weight has."""
        return self.values.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, their scales and offsets."""
        return sum(part.nbytes for part in jax.tree.leaves(self))

    @property
    def group(self) -> int:
        """How many inputs have a scale together."""
        return self.shape[-1] // self.scale.shape[-1]

    def reshape(self, outputs: int, inputs: int) -> Groupwise:
        """[*O *I] -> [O I]."""
        scales = lambda part: part.reshape(outputs, inputs // self.group)  # noqa: E731
        return self.like(self.values.reshape(outputs, inputs * self.bits // 8), scales)

    def times(self, x: jax.Array) -> jax.Array:
        """Every row of x with every row of the weight.  x [R I], weight [O I] -> [R O] float32"""
        return times(x, self)

    def rows(self, ids: jax.Array) -> jax.Array:
        """One row per id, the last for ids past it.  weight [V D], ids [B T] -> [B T D]"""
        parts, ids = jax.lax.optimization_barrier((self, ids))  # as in embedding.look_up
        return jax.tree.map(lambda part: rows_of(part, ids), parts).decoded().astype(self.dtype)

    def decoded(self) -> jax.Array:
        """The weight that it stands for, in float32."""
        numbers = unpack(self.values, self.group) if self.bits == 4 else self.values
        if self.table is not None:
            table = numbers.__array_namespace__().asarray(self.table, dtype=np.float32)
            numbers = table[numbers.astype(np.int32) + 8]
        wide = numbers.reshape(*self.scale.shape, self.group).astype(np.float32)
        offset = 0 if self.offset is None else self.offset[..., None].astype(np.float32)
        return (wide * self.scale[..., None].astype(np.float32) + offset).reshape(self.shape)

    def letters(self, axes: str) -> Any:
        """The letters of its arrays, all of which have the axes of the weight; of the last they have parts."""
        return self.like(axes, lambda part: axes)

    def like(self, values: Any, change: Callable[[jax.Array], Any]) -> Groupwise:
        """The same kind with other numbers, and what becomes of scales and offsets."""
        offset = None if self.offset is None else change(self.offset)
        return dataclasses.replace(self, values=values, scale=change(self.scale), offset=offset)

    def parted(self, inputs: int) -> Any:
        """The same weight in smaller groups where need be: so many inputs of the last axis are whole groups. An array where
        these would be so small that scales take more than they spare."""
        size = math.gcd(self.group, inputs)
        if size == self.group or size < 8:
            return self if size == self.group else self.decoded().astype(self.dtype)
        numbers = unpack(self.values, self.group) if self.bits == 4 else self.values
        return packed(self.like(numbers, lambda part: part.repeat(self.group // size, axis=-1)), size)


def packed(weight: Groupwise, group: int) -> Groupwise:
    """Of one whose numbers are in int8 in either case, the one that has them as they are kept."""
    if weight.bits == 4 and group % 2 == 0:
        return dataclasses.replace(weight, values=pack(weight.values, group))
    return dataclasses.replace(weight, bits=8)
