"""Numbers of 4 bits, two to a byte."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

PACKED = 32  # numbers that are packed together


def pack(numbers: jax.Array, group: int) -> jax.Array:
    """Numbers from -8 to 7 as they lie in memory: two + 8 in a byte, the one in its low bits from the first half of PACKED
    of them, or of as many as divide a group, the other from the second.  [.. I] -> [.. I/2] uint8
    """
    *before, inputs = numbers.shape
    half = math.gcd(group, PACKED) // 2
    low, high = jnp.split((numbers + 8).astype(jnp.uint8).reshape(*before, inputs // half // 2, 2 * half), 2, axis=-1)
    return (low | high << 4).reshape(*before, inputs // 2)


def unpack(values: jax.Array, group: int) -> jax.Array:
    """The inverse of pack.  [.. I/2] uint8 -> [.. I] int8"""
    *before, size = values.shape
    half = math.gcd(group, PACKED) // 2
    two = values.reshape(*before, size // half, half)
    return jnp.concatenate([two & 15, two >> 4], axis=-1).astype(jnp.int8).reshape(*before, 2 * size) - jnp.int8(8)
