"""A weight whose inputs lie in another order than the vector that they are multiplied by, as GPTQ leaves them: those that
matter most come first, and share scales.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.errors import ConfigError
from nanollm_jax.ops.kept import Kept, some


@partial(jax.tree_util.register_dataclass, data_fields=("weight", "order"), meta_fields=())
@dataclass(frozen=True)
class Reordered:
    """weight [*O *I] of any kind but an array; its input i, of all counted through, is input order[i].  order [I] int32"""

    weight: Any
    order: jax.Array

    @property
    def name(self) -> str:
        """That of the weight."""
        return self.weight.name

    @property
    def dtype(self) -> np.dtype:
        """Of the activations."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.weight.shape

    @property
    def ndim(self) -> int:
        """How many axes the weight has."""
        return self.weight.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.weight.nbytes + self.order.nbytes

    def reshape(self, outputs: int, inputs: int) -> Reordered:
        """[*O *I] -> [O I]."""
        return dataclasses.replace(self, weight=self.weight.reshape(outputs, inputs))

    def times(self, x: jax.Array) -> jax.Array:
        """Every row of x with every row of the weight.  x [R I], weight [O I] -> [R O] float32"""
        return self.weight.times(x[:, self.order])

    def rows(self, ids: jax.Array) -> jax.Array:
        """One row per id, the last for ids past it.  weight [V D], ids [B T] -> [B T D]"""
        return self.weight.rows(ids)[..., jnp.argsort(self.order)]

    def some(self, begin: Any, size: int) -> Reordered:
        """So many outputs, of [O I], in the same order of inputs."""
        return dataclasses.replace(self, weight=some(self.weight, begin, size))

    def decoded(self) -> jax.Array:
        """The weight that it stands for, in float32."""
        found: jax.Array = self.weight.decoded()
        inputs = self.order.shape[0]
        flat = found.reshape(found.size // inputs, inputs)[:, jnp.argsort(self.order)]
        return flat.reshape(found.shape)

    def letters(self, axes: str) -> Any:
        """The letters of its arrays: the order has none that a mesh divides."""
        return dataclasses.replace(self, weight=self.weight.letters(axes), order="1")  # type: ignore[arg-type]

    def parted(self, inputs: int) -> Kept:
        """Raises ConfigError: a device of a mesh has some inputs of the vector, and these may be anywhere in the weight."""
        raise ConfigError(
            f"inputs of a weight in {self.name} are in an order of their own (GPTQ's desc_act), which no mesh divides; load it "
            "onto the mesh (nano.load(..., mesh=mesh)), which decodes such weights."
        )
