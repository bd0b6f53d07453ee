"""The product with whole numbers in 8 bits.

Activations stay as they are or, where integers are multiplied, become two digits of 8 bits, which loses next to nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax.ops import native
from nanollm_jax.ops.linear import by_blocks, contract

MANY, BLOCK = 16, 256  # rows, and outputs that are converted together
LARGEST = 127
LOWER = 254  # steps of the lower digit in one of the higher: its own -127 to 127 reach half a step to either side


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


def product(x: jax.Array, values: jax.Array) -> jax.Array:
    """Every row of x with every row of whole numbers, before their scale.  x [R I], values [O I] int8 -> [R O] float32

    They are exact in every dtype of x; a GPU or TPU converts them as it reads them.
    """
    return contract("RI,OI->RO", x, values.astype(x.dtype))


@jax.custom_jvp
def product_on_cpu(x: jax.Array, values: jax.Array) -> jax.Array:
    """product, in the words for which XLA on CPU has its fast kernels.  x [R I], values [O I] int8 -> [R O] float32

    XLA on CPU multiplies int8 by int8 fast, from two rows on (jax 0.10.2), and knows no product of int8 and float32. So x
    goes in as digits, whose sums are exact. For many rows it is quicker to convert the weight, in blocks that the
    processor's cache holds. Where C could be compiled, it multiplies all but very many. Its derivative is that of product:
    digits are rounded, and what is rounded has none.
    """
    if native.takes(x, values):
        return native.product(x, values)
    if x.shape[0] >= MANY:
        return by_blocks(product, x.astype(jnp.float32), values, BLOCK)
    rows, unit = digits(x)
    sums = jnp.einsum("RI,OI->RO", jax.lax.optimization_barrier(rows), values, preferred_element_type=jnp.int32)
    higher, lower = jnp.split(sums.astype(jnp.float32), [x.shape[0]])
    return unit * (higher + lower / LOWER)


@product_on_cpu.defjvp
def along(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
    """product_on_cpu, and how it changes along a change of x; whole numbers do not change."""
    return product_on_cpu(*primals), by_blocks(product, tangents[0], primals[1], BLOCK)
