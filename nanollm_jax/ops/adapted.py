"""A weight with adapters beside it: small products of rank R, of which every row of a batch takes its own, or none.

y = W x + B A x              LoRA: Hu et al. 2021, arXiv:2106.09685. What B A is multiplied by is in B.
y = g (W x + B A x)          DoRA: Liu et al. 2024, arXiv:2402.09353. g brings each output's weights to a length of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.ops.embedding import look_up
from nanollm_jax.ops.kept import Weight, letters_of, name_of, parted
from nanollm_jax.ops.linear import contract, product


@partial(jax.tree_util.register_dataclass, data_fields=("base", "a", "b", "gain", "which"), meta_fields=())
@dataclass(frozen=True)
class Adapted:
    """base [*O *I] of any kind; of each of n adapters a [n R *I], b [n *O R] and, where any is DoRA's, gain [n *O].

    Ranks are made up with zeros to the largest. which [B] int32 says whose row takes which adapter, and is put there by a
    program that knows its rows (params.for_rows); without it all take the first one. That is no adapter at all, of zeros.
    """

    base: Weight
    a: jax.Array
    b: jax.Array
    gain: jax.Array | None = None
    which: jax.Array | None = None

    @property
    def name(self) -> str:
        """That of the weight."""
        return name_of(self.base)

    @property
    def dtype(self) -> np.dtype:
        """That of the activations."""
        return np.dtype(self.base.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        """How many axes the weight has."""
        return self.base.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of the weight and of all adapters."""
        return self.base.nbytes + sum(leaf.nbytes for leaf in jax.tree.leaves((self.a, self.b, self.gain)))

    def reshape(self, outputs: int, inputs: int) -> Adapted:
        """[*O *I] -> [O I]."""
        n, R = self.a.shape[:2]
        gain = None if self.gain is None else self.gain.reshape(n, outputs)
        base = self.base.reshape(outputs, inputs)
        return Adapted(base, self.a.reshape(n, R, inputs), self.b.reshape(n, outputs, R), gain, self.which)

    def times(self, x: jax.Array) -> jax.Array:
        """Every row of x with every row of the weight, as adapted for it.  x [B*T I], weight [O I] -> [B*T O] float32"""
        which = jnp.zeros(1, jnp.int32) if self.which is None else self.which
        B, I = which.shape[0], x.shape[1]  # noqa: E741
        T = x.shape[0] // B
        a, b = (stack.at[which].get(mode="clip") for stack in (self.a, self.b))
        inner = contract("BTI,BRI->BTR", x.reshape(B, T, I), a).astype(b.dtype)
        y = product(x, self.base).reshape(B, T, b.shape[1]) + contract("BTR,BOR->BTO", inner, b)
        if self.gain is not None:
            y *= self.gain.at[which].get(mode="clip")[:, None]
        return y.reshape(B * T, b.shape[1])

    def rows(self, ids: jax.Array) -> jax.Array:
        """One row per id, of the weight as it is: what is looked up in a table is not adapted.  ids [B T] -> [B T D]"""
        return look_up(self.base, ids)

    def outputs(self, ids: jax.Array) -> jax.Array:
        """The rows that x is multiplied by where all take the first adapter.  weight [V D], ids [X] -> [X D] float32"""
        rows = look_up(self.base, ids[None])[0].astype(jnp.float32) + contract("XR,RD->XD", self.b[0, ids], self.a[0])
        return rows if self.gain is None else rows * self.gain[0, ids][:, None]

    def letters(self, axes: str) -> Any:
        """The letters of all its arrays: n and rank, which no mesh splits."""
        inputs = self.a.ndim - 2
        outputs, inside = " ".join(axes.split()[:-inputs]), " ".join(axes.split()[-inputs:])
        gain = None if self.gain is None else f"n {outputs}"
        which = None if self.which is None else "B"
        return Adapted(letters_of(self.base, axes), f"n rank {inside}", f"n {outputs} rank", gain, which)  # type: ignore[arg-type]

    def parted(self, inputs: int) -> Adapted:
        """The same, so that a device can hold so many inputs of the weight's last axis."""
        return replace(self, base=parted(self.base, inputs))


@jax.jit
def added(weight: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """One adapter added into an array.  weight [*O *I], a [R *I], b [*O R] -> [*O *I] float32"""
    R = a.shape[0]
    product = contract("OR,RI->OI", b.reshape(b.size // R, R), a.reshape(R, a.size // R))
    return weight.astype(jnp.float32) + product.reshape(weight.shape)


@jax.jit
def gains(weight: jax.Array, a: jax.Array, b: jax.Array, magnitude: jax.Array) -> jax.Array:
    """What brings each output's weights, with the adapter in them, to their length.  as in added, magnitude [*O] -> [*O]

    NaN is the length of an output that keeps its own; one of zeros stays so.
    """
    whole = added(weight, a, b)
    length = jnp.sqrt(jnp.sum(jnp.square(whole), axis=tuple(range(magnitude.ndim, whole.ndim))))
    return jnp.where(jnp.isnan(magnitude), 1, magnitude / jnp.where(length == 0, 1, length))
