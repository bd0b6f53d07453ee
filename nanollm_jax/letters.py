"""The axis letters of everything but parameters that a compiled program takes or gives, and what a mesh splits of them.

A dataclass that is a pytree names the letters of its fields; a bare array has rows, "B", and whatever else. "B*K" is one axis
with the heads of a row side by side. layout.py has the alphabet, and the parameters' letters.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
from jax.sharding import PartitionSpec

from nanollm_jax.partition import RULE

ROWS = "B"


def spec(letters: str) -> PartitionSpec:
    """How an array with these axes is split.  "K Q H D" -> PartitionSpec("tp", None, None, None)"""
    return PartitionSpec(*(RULE.get(letter) for letter in letters.split()))


def axes(letters: str) -> Any:
    """A field of a dataclass that is a pytree: an array with these axes, or a tuple of such."""
    return flax.struct.field(metadata={"letters": letters})


def of(tree: Any) -> Any:
    """The letters of every leaf, in a tree of the same structure.

    Of a dataclass those that its fields name, of a tuple or dict those of what is in it, of a bare array "B".
    """
    if dataclasses.is_dataclass(tree):
        leaves = [field for field in dataclasses.fields(tree) if field.metadata.get("pytree_node", True)]
        return dataclasses.replace(tree, **{field.name: named(field, getattr(tree, field.name)) for field in leaves})  # type: ignore[type-var]
    if isinstance(tree, tuple | list):
        return type(tree)(*map(of, tree)) if hasattr(tree, "_fields") else type(tree)(map(of, tree))
    if isinstance(tree, dict):
        return {key: of(value) for key, value in tree.items()}
    return None if tree is None else ROWS


def nbytes(tree: Any) -> str:
    """Bytes of all arrays of a tree, in words; of those on a mesh, what all devices have together."""
    return f"{sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)):,} bytes"


def named(field: dataclasses.Field[Any], value: Any) -> Any:
    """The letters of one field's value."""
    letters = field.metadata.get("letters")
    if letters is None or value is None:
        return of(value)
    return tuple(letters for _ in value) if isinstance(value, tuple) else letters
