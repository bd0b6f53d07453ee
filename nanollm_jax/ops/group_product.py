"""A product by groups: rows in consecutive groups, each group with a weight of its own."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.ops import native
from nanollm_jax.ops.kept import Kept, Weight, some
from nanollm_jax.ops.linear import product

MOST = 128  # rows of a tile


def by_group(x: jax.Array, weight: Weight, sizes: jax.Array) -> jax.Array:
    """Every row with its group's weight.  x [R I], weight [E*O I], sizes [E] -> [R O] float32"""
    default = in_tiles if isinstance(weight, Kept) else ragged
    return jax.lax.platform_dependent(x, weight, sizes, cpu=on_cpu, default=default)


def on_cpu(x: jax.Array, weight: Weight, sizes: jax.Array) -> jax.Array:
    """by_group, in C where it multiplies as many rows as a tile has: XLA would copy each group's weight before it is read."""
    if native.takes_experts(x[: tile_of(x.shape[0], sizes.shape[0])], weight):
        return native.product_by_expert(x, weight, sizes, in_tiles)
    return in_tiles(x, weight, sizes)


def ragged(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """by_group, in JAX's own words, for which XLA on CPU reads all groups' weights and multiplies every row with each."""
    E, (EO, I) = sizes.shape[0], weight.shape  # noqa: E741
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
    )
    return jax.lax.ragged_dot_general(
        x, weight.reshape(E, EO // E, I), sizes, numbers,
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip


def tile_of(R: int, E: int) -> int:
    """How many rows a tile has: about as many as a group."""
    return min(MOST, 1 << math.ceil(math.log2(max(1, R / E))))


def in_tiles(x: jax.Array, weight: Weight, sizes: jax.Array) -> jax.Array:
    """by_group, a tile of rows after the other, each of one group and filled up with rows that are not looked at.

    Groups of 3 0 1 rows in tiles of 2: rows 0 1, 2 -, 3 -.
    """
    R, E = x.shape[0], sizes.shape[0]
    O = weight.shape[0] // E  # noqa: E741
    size = tile_of(R, E)
    most = min(R, E)  # groups that have rows, at most; of the other rows, so many make a tile more
    count = most + (R - most) // size
    tiles = -(-sizes // size)
    ends, last = jnp.cumsum(sizes), jnp.cumsum(tiles)  # of each group, in rows and in tiles

    def tile(at: jax.Array) -> jax.Array:
        e = jnp.searchsorted(last, at, side="right")
        begin = ends[e] - sizes[e] + size * (at - last[e] + tiles[e])
        rows = jnp.take(x, begin + jnp.arange(size), axis=0, mode="clip")
        return product(rows, some(weight, e * O, O))

    def none(at: jax.Array) -> jax.Array:
        return collectives.varied(jnp.zeros((size, O), jnp.float32), jax.eval_shape(tile, at))

    def one(at: jax.Array) -> jax.Array:
        return jax.lax.cond(at < last[-1], jax.checkpoint(tile), none, at)

    found = jax.lax.map(one, jnp.arange(count)).reshape(count * size, O)
    e = jnp.searchsorted(ends, jnp.arange(R), side="right")
    place = jnp.arange(R) - (ends - sizes)[e]  # of each row in its group
    return found[size * (last - tiles)[e] + place]
