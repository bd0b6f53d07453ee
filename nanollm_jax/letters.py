"""The axis letters of everything but parameters that a compiled program takes or gives, and what a mesh splits of them.

A dataclass that is a pytree names the letters of its fields; a bare array has rows, "B", and whatever else. "B*K" is one axis
with the heads of a row side by side. layout.py has the alphabet, and the parameters' letters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
from jax.sharding import PartitionSpec

from nanollm_jax.partition import RULE

ROWS = "B"
Kind = TypeVar("Kind")


def spec(letters: str) -> PartitionSpec:
    """How an array with these axes is split.  "K Q H D" -> PartitionSpec("tp", None, None, None)"""
    return PartitionSpec(*(RULE.get(letter) for letter in letters.split()))


def axes(letters: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A field of a pytree: an array with these axes, or a tuple of such."""
    return dataclasses.field(default=default, metadata={"letters": letters})


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """A field of a pytree that is no array: programs are compiled for its value."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(axes, static))
def pytree(kind: type[Kind]) -> type[Kind]:
    """A decorator: a frozen dataclass that is a tree for jax, of its fields but the static ones, with a method `replace`."""
    words = vars(kind).get("__repr__")
    made = dataclasses.dataclass(frozen=True)(kind)
    fields = {field.name: "static" in field.metadata for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    jax.tree_util.register_dataclass(
        made, [name for name, fixed in fields.items() if not fixed], [name for name, fixed in fields.items() if fixed]
    )
    made.replace = dataclasses.replace  # type: ignore[attr-defined]
    if words is not None:
        made.__repr__ = lambda tree: told(tree, words)  # type: ignore[method-assign]
    return made


def of(tree: Any) -> Any:
    """The letters of every leaf, in a tree of the same structure.

    Of a dataclass those that its fields name, of a tuple or dict those of what is in it, of a bare array "B".
    """
    if dataclasses.is_dataclass(tree):
        leaves = [field for field in dataclasses.fields(tree) if "static" not in field.metadata]
        return dataclasses.replace(tree, **{field.name: named(field, getattr(tree, field.name)) for field in leaves})  # type: ignore[type-var]
    if isinstance(tree, tuple | list):
        return type(tree)(*map(of, tree)) if hasattr(tree, "_fields") else type(tree)(map(of, tree))
    if isinstance(tree, dict):
        return {key: of(value) for key, value in tree.items()}
    return None if tree is None else ROWS


def nbytes(tree: Any) -> str:
    """Bytes of all arrays of a tree, in words; of those on a mesh, what all devices have together."""
    return f"{sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)):,} bytes"


def told(tree: Any, words: Callable[[Any], str]) -> str:
    """A pytree as it is printed: in its words, or field by field where jax.tree.map put something else than arrays in it."""
    if all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in jax.tree.leaves(tree)):
        return words(tree)
    fields = (f"{field.name}={getattr(tree, field.name)!r}" for field in dataclasses.fields(tree))
    return f"{type(tree).__name__}({', '.join(fields)})"


def named(field: dataclasses.Field[Any], value: Any) -> Any:
    """The letters of one field's value."""
    letters = field.metadata.get("letters")
    if isinstance(value, tuple) and letters is not None:
        return tuple(named(field, one) for one in value)
    return of(value) if letters is None or value is None or dataclasses.is_dataclass(value) else letters
