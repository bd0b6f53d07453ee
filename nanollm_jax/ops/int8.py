"""Weights in 8 bits: every output's weights are whole numbers from -127 to 127, times one float32 of its own.

That is a quarter of float32's memory. A weight is off by at most half a step, 0.4 % of its output's largest weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.ops.int8_product import LARGEST, product, product_on_cpu
from nanollm_jax.ops.kept import rows_of


@partial(jax.tree_util.register_dataclass, data_fields=("values", "scale"), meta_fields=("dtype",))
@dataclass(frozen=True)
class Int8:
    """values [*O *I] int8 times scale [*O] float32: in place of a weight [*O *I] for activations in dtype."""

    name: ClassVar[str] = "int8"

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

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers and their scales."""
        return self.values.nbytes + self.scale.nbytes

    def reshape(self, outputs: int, inputs: int) -> Int8:
        """[*O *I] -> [O I]."""
        return Int8(self.values.reshape(outputs, inputs), self.scale.reshape(outputs), self.dtype)

    def times(self, x: jax.Array) -> jax.Array:
        """Every row of x with every row of the weight.  x [R I], weight [O I] -> [R O] float32"""
        return self.scale[None] * jax.lax.platform_dependent(x, self.values, cpu=product_on_cpu, default=product)

    def rows(self, ids: jax.Array) -> jax.Array:
        """One row per id, the last for ids past it.  weight [V D], ids [B T] -> [B T D]"""
        values, scale = (rows_of(part, ids) for part in (self.values, self.scale))
        return (values * scale[..., None]).astype(self.dtype)

    def letters(self, axes: str) -> Any:
        """The letters of both arrays: the scales have those of the outputs."""
        return Int8(axes, " ".join(axes.split()[: self.scale.ndim]), self.dtype)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("outputs",))
def quantize(weight: jax.Array, outputs: int) -> Int8:
    """The nearest weight in 8 bits; its first `outputs` axes are outputs, the others inputs.  weight [*O *I]"""
    shape = weight.shape[:outputs]
    rows = weight.astype(jnp.float32).reshape(*shape, math.prod(weight.shape[outputs:]))
    scale = jnp.max(jnp.abs(rows), axis=-1) / LARGEST
    values = jnp.round(rows / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8)
    return Int8(values.reshape(weight.shape), scale, np.dtype(weight.dtype))
