"""Numbers of 4 bits, two to a byte: arrays of JAX, or of NumPy where a weight is on the host."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

PACKED = 32  # numbers that are packed together


def pack(numbers: Any, group: int) -> Any:
    """Numbers from -8 to 7 as they lie in memory: two + 8 in a byte, the one in its low bits from the first half of PACKED
    of them, or of as many as divide a group, the other from the second.  [.. I] -> [.. I/2] uint8
    """
    *before, inputs = numbers.shape
    half = math.gcd(group, PACKED) // 2
    two = (numbers + 8).astype(np.uint8).reshape(*before, inputs // half // 2, 2 * half)
    low, high = two[..., :half], two[..., half:]
    return (low | high << 4).reshape(*before, inputs // 2)


def unpack(values: Any, group: int) -> Any:
    """The inverse of pack.  [.. I/2] uint8 -> [.. I] int8"""
    *before, size = values.shape
    half = math.gcd(group, PACKED) // 2
    two = values.reshape(*before, size // half, half)
    both = values.__array_namespace__().concat([two & 15, two >> 4], axis=-1)
    return both.astype(np.int8).reshape(*before, 2 * size) - np.int8(8)
