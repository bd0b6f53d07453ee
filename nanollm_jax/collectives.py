"""What devices that share a model say to each other: a few words, and without a mesh they say nothing.

Inside the one shard_map (devices/programs.py) the mesh has an axis "tp" along which weights are split. Everywhere else that
axis does not exist, and the functions here hand their argument back: the same ops run on a whole model and on a part of one.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

AXIS = "tp"


def split() -> bool:
    """Is this the program of one member of a mesh, which holds a part of the weights?"""
    return AXIS in jax.sharding.get_abstract_mesh().manual_axes


def psum(x: jax.Array) -> jax.Array:
    """The sum of all members' x, on each of them.  Any shape -> the same"""
    return jax.lax.psum(x, AXIS) if split() else x


def pmean(x: jax.Array) -> jax.Array:
    """The mean of all members' x, on each of them.  Any shape -> the same"""
    return jax.lax.pmean(x, AXIS) if split() else x


def all_gather(x: jax.Array, axis: int = -1) -> jax.Array:
    """All members' x, joined along an axis in their order, on each of them.  [... X] -> [... X*tp]"""
    return jax.lax.all_gather(x, AXIS, axis=axis % x.ndim, tiled=True, to="invarying") if split() else x


def part(x: jax.Array, axis: int = -1, name: str = AXIS) -> jax.Array:
    """The part of x that is this member's, along one of its axes and one of the mesh's; x itself without a mesh."""
    if not split():
        return x
    size = x.shape[axis] // jax.lax.axis_size(name)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(name) * size, size, axis)


def members() -> int:
    """How many they are; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape[AXIS] if split() else 1


def index() -> jax.Array | int:
    """Which member this is, counted from 0."""
    return jax.lax.axis_index(AXIS) if split() else 0


def varied(x: jax.Array, like: Any) -> jax.Array:
    """x as a number of each member's own wherever `like` is one, as what a loop carries has to be from the beginning."""
    kind, own = like.manual_axis_type, jax.typeof(x).manual_axis_type
    more = tuple(kind.varying - own.varying) if kind is not None and own is not None else ()
    return jax.lax.pcast(x, more, to="varying") if more else x


def whole(x: jax.Array | np.ndarray) -> np.ndarray:
    """An array on the host, all of it. Where its parts lie in several processes, all of them have to ask for it."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
