"""What a member of a mesh has of a value, and the whole of it, as users see it: rows, heads and channels of the model's own.

Members split heads and channels. Where they do not divide, a mesh holds more of them than the model has, of zeros or copies
(partition.py): those that are made up are never seen, and an edit of a head is one of all its copies.
"""

from __future__ import annotations

from functools import reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax import collectives
from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import RequestError
from nanollm_jax.glass.names import SPLIT, letters
from nanollm_jax.partition import sources


class Axis(NamedTuple):
    """Where a value has heads or channels that a mesh makes up: so many axes from this one on, the model's sizes of them, and
    which of the model's own each is that is held, -1 for none.
    """

    at: int
    own: tuple[int, ...]
    source: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Where the first of each of the model's own is held."""
        return np.array([np.flatnonzero(self.source == n)[0] for n in range(prod(self.own))])

    def flat(self, value: jax.Array, count: int) -> jax.Array:
        """The same value with one axis of so many in place of these."""
        return value.reshape(*value.shape[: self.at], count, *value.shape[self.at + len(self.own) :])


def made_up(name: str, ndim: int, config: ModelConfig | None, tp: int) -> Axis | None:
    """The axis of a value that a mesh of tp has more of than the model; None where it is the model's own."""
    axes = letters(name) or []
    split = [at for at, letter in enumerate(axes) if SPLIT.get(letter) == collectives.AXIS]
    if config is None or not split:
        return None
    (at,) = split
    grouped = axes[at : at + 2] == ["K", "G"]
    axes = config.layers[int(name.split(".")[1])].letters(" ".join(axes)).split()
    source = sources(config, tp)[axes[at].replace("K", "N") if grouped else axes[at]]
    own = tuple(config.sizes[letter] for letter in axes[at : at + 1 + grouped])
    return None if np.array_equal(source, np.arange(prod(own))) else Axis(ndim - len(axes) + at, own, source)


def owned(name: str, value: jax.Array, config: ModelConfig | None, tp: int) -> jax.Array:
    """A value of all members with the heads and channels that the model has; config is the model's own, None changes nothing.

    It may have axes of loops before its own.
    """
    if (axis := made_up(name, value.ndim, config, tp)) is None:
        return value
    found = jnp.take(axis.flat(value, len(axis.source)), axis.first, axis=axis.at)
    return found.reshape(*value.shape[: axis.at], *axis.own, *value.shape[axis.at + len(axis.own) :])


def held(name: str, value: jax.Array, config: ModelConfig | None, tp: int, old: jax.Array) -> jax.Array:
    """A value with the model's own heads and channels as members hold it; what they make up stays as it is in `old`."""
    if (axis := made_up(name, value.ndim, config, tp)) is None:
        return value
    found = jnp.take(axis.flat(value, prod(axis.own)), np.maximum(axis.source, 0), axis=axis.at)
    there = (axis.source >= 0).reshape(-1, *[1] * (found.ndim - axis.at - 1))
    there = there.reshape(*[1] * axis.at, *there.shape)
    return jnp.where(there, found, axis.flat(old, len(axis.source))).reshape(old.shape)


def gather(name: str, value: Any, config: ModelConfig | None) -> Any:
    """All that a model has of a value, on every member; the value itself without a mesh."""
    if not collectives.split():
        return value
    return owned(name, reduce(collectives.all_gather, split_axes(name, value), value), config, collectives.members())


def part(name: str, new: Any, old: Any, config: ModelConfig | None) -> Any:
    """This member's part of a new value of all; old is its part of the one before."""
    if not collectives.split():
        return new
    axes = split_axes(name, old)
    if made_up(name, new.ndim, config, collectives.members()) is not None:
        new = held(name, new, config, collectives.members(), reduce(collectives.all_gather, axes, old))
    return reduce(collectives.part, axes, new)


def split_axes(name: str, value: Any) -> list[int]:
    """The axes along which a member has only its part of the heads or channels of a value."""
    axes = letters(name)
    if axes is None or len(axes) != value.ndim:
        raise RequestError(
            f"{name} is not one of the model's values, and on a mesh nobody knows which part a device has."
        )
    return [at for at, letter in enumerate(axes) if SPLIT.get(letter) == collectives.AXIS]


def rows_of(x: jax.Array) -> jax.Array:
    """The rows of an array that are a member's; of one row, which is for all of them, the array itself."""
    return x if x.shape[0] == 1 else collectives.part(x, 0, "dp")
