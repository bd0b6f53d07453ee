"""How weights in groups are made: of whole numbers and scales, as they were published, or of a weight, the nearest ones."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.ops.groupwise import Groupwise, packed

TRIES = 9  # scales of a group


def groupwise(
    numbers: Any, scale: Any, offset: Any = None, *, bits: int, dtype: Any, table: tuple[float, ...] | None = None
) -> Groupwise:
    """A weight of plain numbers: exactly scale * number + offset in float32, for activations in dtype.

    numbers [*O *I], in any dtype of whole numbers: from -8 to 7 for 4 bits, from -128 to 127 for 8; or floats of 8 bits
    scale, offset [*O n], each in any float dtype, in which it is kept: n groups of equal size are all inputs of an output in
    their order. What is published as scale * (number - zero) has offset = -scale * zero, exact in float32.

    Groups that lie across the end of the last axis become smaller ones with the same scale; where the size of one is odd, 4
    bits are kept as 8. Arrays of NumPy stay on the host.
    """
    last, size = numbers.shape[-1], math.prod(numbers.shape[scale.ndim - 1 :]) // scale.shape[-1]
    group = math.gcd(size, last)

    def divided(part: Any) -> Any:
        return part.repeat(size // group, axis=-1).reshape(*numbers.shape[:-1], last // group)

    offset = None if offset is None else divided(offset)
    values = numbers if jnp.issubdtype(numbers.dtype, jnp.floating) else numbers.astype(np.int8)
    return packed(Groupwise(values, divided(scale), offset, bits, np.dtype(dtype), table), group)


@partial(jax.jit, static_argnames=("bits", "group", "divided"))
def quantize(weight: jax.Array, bits: int, group: int, divided: bool = False) -> Groupwise:
    """A weight [*O *I] in so many bits, in groups of its last axis: of several scales the one that leaves least, in squares.

    Scales are in bfloat16, which reaches as far as float32; the numbers are the nearest to what a scale is rounded to.
    divided: it lies on several devices, so its axes stay apart. XLA on a CPU takes four times as long for that.
    """
    rows = weight.astype(jnp.float32).reshape(*weight.shape[:-1], weight.shape[-1] // group, group)
    numbers, scale = rounded(rows if divided else rows.reshape(-1, *rows.shape[-2:]), bits)
    made = Groupwise(numbers.reshape(weight.shape), scale.reshape(rows.shape[:-1]), None, bits, np.dtype(weight.dtype))
    return packed(made, group)


def rounded(rows: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Whole numbers and the scale of every group.  [.. group] -> int8 [.. group], bfloat16 [..]"""
    most = 2 ** (bits - 1)
    high, low = jnp.max(rows, axis=-1, keepdims=True), jnp.min(rows, axis=-1, keepdims=True)
    extreme = jnp.where(high > -low, high, low)
    shares = rows / jnp.where(extreme == 0, 1, extreme)  # whose squares are neither too small nor too large
    best, step = jnp.full(extreme.shape, -1.0), jnp.zeros_like(extreme)
    for reach in np.linspace(-most - 0.5, -most + 1.5, TRIES, dtype=np.float32):
        tried = jnp.clip(jnp.round(shares * reach), -most, most - 1)
        # the scale with which these numbers are nearest to the weights, and by how much nearer than zeros, in squares
        squares, likeness = (jnp.sum(tried * by, axis=-1, keepdims=True) for by in (tried, shares))
        found = likeness / jnp.where(squares == 0, 1, squares)
        better = found * likeness > best
        best, step = jnp.where(better, found * likeness, best), jnp.where(better, found, step)
    scale = (step * extreme).astype(jnp.bfloat16)
    wide = scale.astype(jnp.float32)
    numbers = jnp.clip(jnp.round(rows / jnp.where(wide == 0, jnp.inf, wide)), -most, most - 1)
    return numbers.astype(jnp.int8), scale[..., 0]
