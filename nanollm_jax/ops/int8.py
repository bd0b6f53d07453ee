"""Weights in 8 bits: every output's weights are whole numbers from -127 to 127, times one float32 of its own.

That is a quarter of float32's memory. A weight is off by at most half a step, 0.4 % of its output's largest weight.
Activations stay as they are or, where integers are multiplied, become two digits of 8 bits, which loses next to nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 127
LOWER = 254  # steps of the lower digit in one of the higher: its own -127 to 127 reach half a step to either side


@partial(jax.tree_util.register_dataclass, data_fields=("values", "scale"), meta_fields=("dtype",))
@dataclass(frozen=True)
class Int8:
    """values [*O *I] int8 times scale [*O] float32: in place of a weight [*O *I] for activations in dtype."""

    values: jax.Array
    scale: jax.Array
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """How many axes the weight has."""
        return self.values.ndim

    def reshape(self, outputs: int, inputs: int) -> Int8:
        """[*O *I] -> [O I], as product wants it."""
        return Int8(self.values.reshape(outputs, inputs), self.scale.reshape(outputs), self.dtype)


@partial(jax.jit, static_argnames=("outputs",))
def quantize(weight: jax.Array, outputs: int) -> Int8:
    """The nearest weight in 8 bits; its first `outputs` axes are outputs, the others inputs.  weight [*O *I]"""
    shape = weight.shape[:outputs]
    rows = weight.astype(jnp.float32).reshape(*shape, math.prod(weight.shape[outputs:]))
    scale = jnp.max(jnp.abs(rows), axis=-1) / LARGEST
    values = jnp.round(rows / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8)
    return Int8(values.reshape(weight.shape), scale, np.dtype(weight.dtype))


def digits(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row as two rows of digits in 8 bits, the higher and the lower, and its unit.  x [R I] -> [2R I] int8, [R 1]

    x is unit * (higher + lower / LOWER), right to 1/64516 of the row's largest number.
    """
    x = x.astype(jnp.float32)
    unit = jnp.max(jnp.abs(x), axis=1, keepdims=True) / LARGEST
    scaled = x / jnp.where(unit == 0, 1, unit)
    higher = jnp.round(scaled)
    lower = jnp.round((scaled - higher) * LOWER)
    return jnp.concatenate([higher, lower]).astype(jnp.int8), unit
