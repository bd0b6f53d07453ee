"""One row of a family's tensor table, and the small language in which it says how a tensor's axes become ours."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """How one tensor of a checkpoint becomes one of our parameters.

    path   our parameter               "layers.3.attention.wq"
    name   the checkpoint's tensor     "model.layers.3.self_attn.q_proj.weight"
    axes   its axes and ours           "(N H) D -> D N H"; "D" alone for an axis that stays
    part   (index, count): cut the tensor's last axis into `count` equal parts and take part `index` first.
           GPT-2 stores q, k and v side by side [D 3*N*H]: three rows share the name, with parts (0, 3), (1, 3), (2, 3).
    """

    path: str
    name: str
    axes: str
    part: tuple[int, int] | None = None

    def stored_shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape of the whole tensor in the file, all parts included, for the size of each letter."""
        *front, last = source_shape(self.axes, sizes)
        return (*front, last * (self.part[1] if self.part else 1))

    def cut(self, tensor: np.ndarray) -> np.ndarray:
        """tensor [... count*n] -> this row's part of it [... n], a view."""
        if self.part is None:
            return tensor
        index, count = self.part
        n = tensor.shape[-1] // count
        return tensor[..., index * n : (index + 1) * n]


def rearrange(array: np.ndarray, axes: str, sizes: dict[str, int]) -> np.ndarray:
    """Split grouped axes, put the letters into their new order, merge groups; a view unless a merge needs a copy.

    "(N H) D -> D N H" with N=2, H=3:  array [6 D] -> [2 3 D] -> [D 2 3].
    Raises ValueError where the array does not have source_shape(axes, sizes), or the two sides name different letters.
    """
    left, right = parse(axes)
    source, target = ([letter for group in side for letter in group] for side in (left, right))
    if sorted(source) != sorted(target) or len(set(source)) < len(source):
        raise ValueError(f"axes {axes!r}: expected each letter once on both sides.")
    if array.shape != source_shape(axes, sizes):
        raise ValueError(f"axes {axes!r}: found shape {array.shape}, expected {source_shape(axes, sizes)}.")
    split = array.reshape([sizes[letter] for letter in source])
    ordered = split.transpose([source.index(letter) for letter in target])
    return ordered.reshape([math.prod(sizes[letter] for letter in group) for group in right])


def source_shape(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape that the left side of `axes` expects: "(N H) D -> D N H" -> (N*H, D)."""
    return tuple(math.prod(sizes[letter] for letter in group) for group in parse(axes)[0])


def parse(axes: str) -> tuple[list[list[str]], list[list[str]]]:
    """The groups of both sides, equal without an arrow: "(N H) D -> D N H" -> [[N, H], [D]], [[D], [N], [H]]."""
    left, _, right = axes.partition("->")
    return groups(left), groups(right or left)


def groups(side: str) -> list[list[str]]:
    """The letters of one side, axis by axis: "(N H) D" -> [[N, H], [D]]."""
    return [(inside or single).split() for inside, single in re.findall(r"\(([^()]+)\)|([^()\s]+)", side)]
