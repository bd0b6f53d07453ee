"""Numbers in groups: what every form of a weight in few bits comes down to."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 22  # numbers that are worked on at a time


@dataclass(frozen=True)
class Footprint:
    """What of numbers in groups says how many bytes they take in memory, before any of them is read.

    bits    of a number
    size    inputs of a group
    beside  bytes of a group's scale and offset
    """

    bits: int
    size: int
    beside: int

    def nbytes(self, count: int) -> int:
        """Of so many numbers. At most: offsets that turn out to be zeros are not kept."""
        return count * self.bits // 8 + count // self.size * self.beside


@dataclass(frozen=True)
class Groups:
    """A weight [*O I]: input i of a row is values[i] * scale[g] + offset[g], where g = i // size, or order[i].

    values  [*O I] whole numbers, int8 or uint8, or 8-bit floats; with a table, places in it
    scale   [*O G] of any float dtype; the last group may be shorter than the others
    offset  [*O G] float32
    table   [16] float32
    order   [I], which group each input is of, where they do not follow each other
    bits    that a whole number has
    inputs_first  the family's table has the last two axes the other way round
    """

    values: np.ndarray
    scale: np.ndarray
    size: int
    offset: np.ndarray | None = None
    table: np.ndarray | None = None
    order: np.ndarray | None = None
    bits: int = 8
    inputs_first: bool = False

    @property
    def footprint(self) -> Footprint:
        """What it takes in memory."""
        beside = self.scale.dtype.itemsize + (0 if self.offset is None else self.offset.dtype.itemsize)
        return Footprint(self.bits, self.size, beside)

    def divides(self) -> bool:
        """Whether inputs follow each other, or every group has as many as it should, wherever they are."""
        return self.order is None or divided(self.order, self.scale.shape[-1], self.size)

    def weight(self) -> np.ndarray:
        """The numbers themselves, some rows at a time.  -> [*O I] float32"""
        *outputs, inputs = self.values.shape
        weight = np.empty(self.values.shape, np.float32)
        group = np.arange(inputs) // self.size if self.order is None else self.order
        rows, values = weight.reshape(-1, inputs), self.values.reshape(-1, inputs)
        scale, offset = (None if x is None else x.reshape(len(rows), -1) for x in (self.scale, self.offset))
        assert scale is not None
        step = max(1, CHUNK // max(1, inputs))
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            rows[part] = values[part] if self.table is None else self.table[values[part]]
            rows[part] *= scale[part].astype(np.float32)[:, group]
            if offset is not None:
                rows[part] += offset[part][:, group]
        return weight


def divided(order: np.ndarray, groups: int, size: int) -> bool:
    """Whether each of so many groups has so many inputs."""
    return bool((np.bincount(order, minlength=groups) == size).all())


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Whole numbers of a few bits each, out of a row's bits from the lowest of its first word on.

    words [... W] of any size, contiguous -> [... count] uint8. 2, 4 and 8 bits by shifts, others bit by bit.
    """
    assert sys.byteorder == "little"
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data[..., :count]
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        parts = (data[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return parts.reshape(*data.shape[:-1], data.shape[-1] * len(shifts))[..., :count]
    single = np.unpackbits(data, axis=-1, count=count * bits, bitorder="little")
    single = single.reshape(*data.shape[:-1], count, bits)
    return np.packbits(single, axis=-1, bitorder="little")[..., 0]
