"""Tensors in few bits -> one parameter in few bits: put together as its pieces are, where they are of one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from nanollm_jax.errors import CheckpointError
from nanollm_jax.weights.checkpoint import AGAIN
from nanollm_jax.weights.quantised.groups import Footprint, Groups
from nanollm_jax.weights.rows import Row, rearrange

LEAST = 8  # inputs of a group; smaller ones take more memory than they spare
Array = np.ndarray


def together(pieces: Sequence[tuple[Row, Groups | None]], letters: str, sizes: Mapping[str, int]) -> Groups | None:
    """The groups of a parameter with these axes, whose rows are its last axis; None where they cannot be one.

    Whole numbers are centred: of 4 bits, where all have so few, from -8 to 7, else from -128 to 127. So are places in a table.
    Groups are as small as the smallest of any piece, and as divide the last axis. Where inputs are of groups in another order,
    the same in all pieces, they lie group by group: order then says which input each of them is. Raises CheckpointError for a
    number that is none.
    """
    groups = [one for _, one in pieces if one is not None]
    if len(groups) < len(pieces) or (order := order_of(groups)) is False:
        return None
    names, first = letters.split(), groups[0]
    inputs = sizes[names[-1]]
    kinds = {
        (one.values.dtype if is_float(one) else None, None if one.table is None else tuple(one.table)) for one in groups
    }
    kept = joined([one.footprint for one in groups], inputs)
    if len(kinds) > 1 or kept is None:
        return None
    size, bits = kept.size, kept.bits
    shape = tuple(sizes[letter] for letter in names)
    fewer = dict(sizes) | {names[-1]: inputs // size}
    plain = first.scale.dtype if len({one.scale.dtype for one in groups}) == 1 else np.dtype(np.float32)
    values = np.empty(shape, first.values.dtype if is_float(first) else np.int8)
    scale = np.empty((*shape[:-1], inputs // size), plain)
    offset = np.zeros(scale.shape, np.float32)
    for row, one in pieces:
        assert one is not None
        numbers, below = centred(one, bits)
        numbers = numbers if order is None else numbers[..., order]
        scales = finer(one.scale, one, size)
        offsets = below * scales.astype(np.float32)
        if one.offset is not None:
            offsets += finer(one.offset, one, size)
        if not (np.isfinite(scales.astype(np.float32)).all() and np.isfinite(offsets).all() and finite(numbers)):
            raise CheckpointError(f"tensor {row.name!r} has a weight that is no number; {AGAIN}.")
        for whole, part, lengths in ((values, numbers, sizes), (scale, scales, fewer), (offset, offsets, fewer)):
            part = np.swapaxes(part, -1, -2) if one.inputs_first else part
            whole[row.piece()] = rearrange(part[row.cut()], row.axes, dict(lengths))
    return Groups(values, scale, size, offset if offset.any() else None, first.table, order, bits)


def joined(pieces: Sequence[Footprint], inputs: int) -> Footprint | None:
    """Of one parameter out of pieces of these, whose last axis is so long; None where its groups would be too small."""
    size = math.gcd(inputs, *(one.size for one in pieces))
    bits = 4 if size % 2 == 0 and all(one.bits <= 4 for one in pieces) else 8
    return Footprint(bits, size, max(one.beside for one in pieces)) if size >= LEAST else None


def order_of(groups: Sequence[Groups]) -> Array | Literal[False] | None:
    """The inputs group by group, where they are not so already: None. False where pieces differ, or groups in their sizes."""
    order = groups[0].order
    if any((one.order is None) != (order is None) or not one.divides() for one in groups):
        return False
    if order is None:
        return None
    same = all(one.order is not None and np.array_equal(one.order, order) for one in groups)
    return np.argsort(order, kind="stable").astype(np.int32) if same else False


def is_float(groups: Groups) -> bool:
    """Whether its numbers are floats of 8 bits."""
    return groups.values.dtype not in (np.dtype(np.int8), np.dtype(np.uint8))


def finite(numbers: Array) -> bool:
    """Whether all of them are numbers."""
    return numbers.dtype == np.int8 or bool(np.isfinite(numbers.astype(np.float16)).all())


def centred(groups: Groups, bits: int) -> tuple[Array, int]:
    """Its numbers as they are kept, and what has to be added to them; floats and what has a sign stay."""
    if groups.table is not None:
        return (groups.values.astype(np.int8) - np.int8(8)), 0
    if groups.values.dtype != np.uint8:
        return groups.values, 0
    middle = 8 if bits == 4 else 1 << (groups.bits - 1)
    return (groups.values.astype(np.int16) - middle).astype(np.int8), middle


def finer(scale: Array, groups: Groups, size: int) -> Array:
    """Scales of smaller groups.  [*O G] -> [*O I/size]"""
    return np.repeat(scale, groups.size // size, axis=-1)[..., : groups.values.shape[-1] // size]
