"""Matrix products, which are nearly everything that a transformer does.

Weights are stored [outputs, inputs], each row one output: the order of the checkpoints, and the one in which the
processor reads memory straight through at one row of activations as at a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.ops import native
from nanollm_jax.ops.kept import Kept, Weight

MANY, BLOCK = 256, 256  # rows, and outputs that are converted together


def contract(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of two arrays, accumulated and returned in float32.

    Devices differ in how they multiply float32 by default (TF32 on a GPU, one bfloat16 pass on a TPU); "highest" asks
    all of them for real float32. It changes nothing for 16-bit operands, whose products are exact in float32.
    """
    return jnp.einsum(equation, a, b, precision="highest", preferred_element_type=jnp.float32)


def linear(x: jax.Array, weight: Weight, bias: jax.Array | None = None) -> jax.Array:
    """x times weight, plus bias if there is one, in the dtype of x.  x [B T *I], weight [*O *I], bias [*O] -> [B T *O]

    "B T D" by "K Q H D" is the projection to heads, "B T N H" by "D N H" the one back: all of x's axes after B and T
    are contracted with the last axes of the weight.
    """
    return add(multiply(x, weight), bias).astype(x.dtype)


def linear_sum(x: jax.Array, weight: Weight, bias: jax.Array | None = None) -> jax.Array:
    """linear where a mesh splits what is contracted: the members' products are summed, and the bias added once, after it.

    x [B T *I], weight [*O *I], bias [*O] -> [B T *O]; each member holds a part of the first of the axes I.
    """
    return add(collectives.psum(multiply(x, weight)), bias).astype(x.dtype)


def multiply(x: jax.Array, weight: Weight) -> jax.Array:
    """The product of linear, for any number of axes.  x [B T *I], weight [*O *I] -> [B T *O] float32"""
    B, T, *inputs = x.shape
    outputs = weight.shape[: weight.ndim - len(inputs)]
    I, O = math.prod(inputs), math.prod(outputs)  # noqa: E741
    return product(x.reshape(B * T, I), weight.reshape(O, I)).reshape(B, T, *outputs)


def add(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """y plus a bias where there is one, in float32.  y [B T *O], bias [*O] -> [B T *O]"""
    return y if bias is None else y + bias.astype(jnp.float32)[None, None]


@jax.jit
def product(x: jax.Array, weight: Weight) -> jax.Array:
    """Every row of x with every row of weight.  x [R I], weight [O I] -> [R O] float32"""
    if isinstance(weight, Kept):
        return weight.times(x)
    return jax.lax.platform_dependent(x, weight, cpu=product_on_cpu, default=lambda x, w: contract("RI,OI->RO", x, w))


def product_on_cpu(x: jax.Array, weight: jax.Array) -> jax.Array:
    """product, in the words for which XLA on CPU has its fast kernels (measured on jax 0.10.2).

    float32: the small operand turned, [O I] by [I R], and turned back; barriers keep XLA from folding the turns into
    the product, which halves its speed. From MANY rows on turning costs more than it brings. bfloat16: as it stands, but
    never for a single row, for which XLA would convert the whole weight to float32 on every call. float16: a block after
    the other, for XLA would convert all of it for any number of rows. A few rows are multiplied in C, where it could be
    compiled: XLA on CPU reads 16 bits no faster than 32.
    """
    if native.takes(x, weight):
        return native.product(x, weight)
    R = x.shape[0]
    if weight.dtype == jnp.float32 and R < MANY:
        turned = jax.lax.optimization_barrier(x.T)
        return jax.lax.optimization_barrier(contract("OI,IR->OR", weight, turned)).T
    if weight.dtype == jnp.float16:
        converted = lambda x, part: contract("RI,OI->RO", x, part.astype(jnp.float32))  # noqa: E731
        return by_blocks(converted, x.astype(jnp.float32), weight, BLOCK)
    rows = jnp.concatenate([x, x]) if R == 1 else x
    return contract("RI,OI->RO", jax.lax.optimization_barrier(rows), weight)[:R]


def by_blocks(multiply: Callable[[jax.Array, Any], jax.Array], x: jax.Array, weight: Any, size: int) -> jax.Array:
    """multiply(x, weight), so many outputs after the others, so that what it makes of a weight is never there as a whole.

    x [R I], weight [O I], an array or a kind whose arrays all have the outputs first -> [R O]. A derivative makes it again, and
    keeps none of it meanwhile.
    """
    multiply = jax.checkpoint(multiply)
    R, O = x.shape[0], weight.shape[0]  # noqa: E741
    if size >= O:
        return multiply(x, weight)
    full = (O - 1) // size  # blocks before the last, which ends where the outputs end and may overlap the one before

    def block(begin: jax.Array) -> jax.Array:
        # together with begin, which changes: else XLA on CPU converts 8-bit floats, and scales, of all outputs before the loop
        parts, begin = jax.lax.optimization_barrier((weight, begin))
        return multiply(x, jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, begin, size), parts))

    found = jax.lax.map(block, jnp.minimum(size * jnp.arange(full + 1), O - size))  # [full + 1 R size]
    last = found[-1, :, size - (O - full * size) :]
    return jnp.concatenate([found[:-1].swapaxes(0, 1).reshape(R, full * size), last], axis=1)
