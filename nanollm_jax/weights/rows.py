"""One row of a family's tensor table, and the small language in which it says how a tensor's axes become ours."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Piece = tuple[int, int, int]  # axis, start, stop


@dataclass(frozen=True)
class Row:
    """How one tensor of a checkpoint becomes one of our parameters.

    path   our parameter               "layers.3.mlp.down"
    name   the checkpoint's tensor     "model.layers.3.mlp.down_proj.weight"
    axes   its axes and ours           "D (N H) -> D N H"; "D" alone for an axis that stays; 1 is an axis of length one
    into   (axis, start, stop): the piece of our parameter that this tensor fills, where several share one.
           Queries, keys and values of [K Q H D] with G = 4: (1, 0, 4), (1, 4, 5), (1, 5, 6).
           Several of them for a piece along several axes: expert 3's gate of [E U M D] is ((0, 3, 4), (1, 0, 1)).
    part   (axis, start, stop): the piece of the tensor that this row takes, where several rows share one tensor;
           axes are then those of the piece. All pieces together are the whole tensor.
    outside  the tensor is no part of the base model, so its name has no prefix, or a shorter one
    instead  0, or the number of another way to store the same parameter: all rows of a path with this number serve where
             those with a lower one are not all there, or where their tensors, under the same names, have these shapes
    """

    path: str
    name: str
    axes: str
    into: Piece | tuple[Piece, ...] | None = None
    part: Piece | None = None
    outside: bool = False
    instead: int = 0

    def names(self, prefix: str) -> list[str]:
        """What the tensor may be called, the likeliest name first. prefix: what stands before the base model's names."""
        whole = prefix[
            : prefix.rstrip(".").rfind(".") + 1
        ]  # of the model around it: "language_model." of "language_model.model."
        return [self.name, whole + self.name, prefix + self.name] if self.outside else [prefix + self.name, self.name]

    def places(self) -> dict[int, slice]:
        """The axes of the parameter along which the tensor fills a piece only, and which."""
        pieces: Any = () if self.into is None else self.into if isinstance(self.into[0], tuple) else (self.into,)
        return {axis: slice(start, stop) for axis, start, stop in pieces}

    def piece(self) -> tuple[slice, ...]:
        """Where in the parameter the tensor goes, as an index."""
        places = self.places()
        return tuple(places.get(axis, slice(None)) for axis in range(max(places, default=-1) + 1))

    def cut(self) -> tuple[slice, ...]:
        """Which part of the tensor is taken, as an index."""
        if self.part is None:
            return ()
        axis, start, stop = self.part
        return (*[slice(None)] * axis, slice(start, stop))


def stored_shape(rows: Sequence[Row], sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of the one tensor that all these rows take: one row all of it, or several a part each.

    Raises ValueError where the parts leave a gap or overlap.
    """
    shape = list(source_shape(rows[0].axes, sizes))
    if rows[0].part is None and len(rows) == 1:
        return tuple(shape)
    end = 0
    for row in sorted(rows, key=lambda row: row.part or (0, 0, 0)):
        axis, start, stop = row.part or (0, 0, 0)
        if start != end or stop - start != source_shape(row.axes, sizes)[axis]:
            raise ValueError(f"{row.name}: its parts {[row.part for row in rows]} do not cover it.")
        end = stop
    shape[axis] = end
    return tuple(shape)


def rearrange(array: np.ndarray, axes: str, sizes: dict[str, int]) -> np.ndarray:
    """Split grouped axes, put the letters into their new order, merge groups; a view unless a merge needs a copy.

    "(K H) D -> K 1 H D" with K=2, H=3:  array [6 D] -> [2 3 D] -> [2 1 3 D].
    Raises ValueError where the array does not have source_shape(axes, sizes), or the two sides name different letters.
    """
    left, right = parse(axes)
    source, target = ([letter for group in side for letter in group if letter != "1"] for side in (left, right))
    if sorted(source) != sorted(target) or len(set(source)) < len(source):
        raise ValueError(f"axes {axes!r}: expected each letter once on both sides.")
    if array.shape != source_shape(axes, sizes):
        raise ValueError(f"axes {axes!r}: found shape {array.shape}, expected {source_shape(axes, sizes)}.")
    split = array.reshape([sizes[letter] for letter in source])
    ordered = split.transpose([source.index(letter) for letter in target])
    return ordered.reshape([math.prod(length(letter, sizes) for letter in group) for group in right])


def source_shape(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape that the left side of `axes` expects: "(N H) D -> D N H" -> (N*H, D)."""
    return tuple(math.prod(length(letter, sizes) for letter in group) for group in parse(axes)[0])


def length(letter: str, sizes: dict[str, int]) -> int:
    """How long an axis is; "1" is its own length."""
    return 1 if letter == "1" else sizes[letter]


def parse(axes: str) -> tuple[list[list[str]], list[list[str]]]:
    """The groups of both sides, equal without an arrow: "(N H) D -> D N H" -> [[N, H], [D]], [[D], [N], [H]]."""
    left, _, right = axes.partition("->")
    return groups(left), groups(right or left)


def groups(side: str) -> list[list[str]]:
    """The letters of one side, axis by axis: "(N H) D" -> [[N, H], [D]]."""
    return [(inside or single).split() for inside, single in re.findall(r"\(([^()]+)\)|([^()\s]+)", side)]
