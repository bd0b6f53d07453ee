"""One row of a family's tensor table, and the small language in which it says how a tensor's axes become ours."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """How one tensor of a checkpoint becomes one of our parameters.

    path   our parameter               "layers.3.mlp.down"
    name   the checkpoint's tensor     "model.layers.3.mlp.down_proj.weight"
    axes   its axes and ours           "D (N H) -> D N H"; "D" alone for an axis that stays; 1 is an axis of length one
    into   (axis, start, stop): the piece of our parameter that this tensor fills, where several share one.
           Queries, keys and values of [K Q H D] with G = 4: (1, 0, 4), (1, 4, 5), (1, 5, 6).
    """

    path: str
    name: str
    axes: str
    into: tuple[int, int, int] | None = None

    def piece(self) -> tuple[slice, ...]:
        """Where in the parameter the tensor goes, as an index."""
        if self.into is None:
            return ()
        axis, start, stop = self.into
        return (*[slice(None)] * axis, slice(start, stop))


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
