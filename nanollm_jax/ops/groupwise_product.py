"""The product with whole numbers in groups: they are decoded as they are read, a block of outputs after the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax.ops import native
from nanollm_jax.ops.linear import by_blocks, contract

FEW = 16  # rows, for which a GPU or TPU decodes numbers as it multiplies them, and keeps none
BLOCK, WIDE = 256, 8192  # outputs that are decoded together: what a processor's cache holds, and what fills a GPU


def times(x: jax.Array, weight: Any) -> jax.Array:
    """Every row of x with every row of a Groupwise.  x [R I], weight [O I] -> [R O] float32"""
    return jax.lax.platform_dependent(x, weight, cpu=product_on_cpu, default=product)


def product(x: jax.Array, weight: Any) -> jax.Array:
    """times, in the dtype of x.  x [R I], weight [O I] -> [R O] float32"""
    size = weight.shape[0] if x.shape[0] <= FEW else WIDE
    return by_blocks(lambda x, part: contract("RI,OI->RO", x, part.decoded().astype(x.dtype)), x, weight, size)


def product_on_cpu(x: jax.Array, weight: Any) -> jax.Array:
    """times, in float32; of all but very many rows in C, where it could be compiled.  x [R I], weight [O I] -> [R O] float32"""
    if native.takes_groups(x, weight):
        return native.product_in_groups(x, weight, in_blocks)
    return in_blocks(x.astype(jnp.float32), weight)


def in_blocks(x: jax.Array, weight: Any) -> jax.Array:
    """product, in blocks that a processor's cache holds.  x [R I] float32, weight [O I] -> [R O] float32"""
    return by_blocks(lambda x, part: contract("RI,OI->RO", x, part.decoded()), x, weight, BLOCK)
