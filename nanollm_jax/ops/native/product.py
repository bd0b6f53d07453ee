"""Products of a few rows with a weight in 16, 8 or 4 bits, in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax.ops.native.library import multiplies

ROWS = 16  # of a weight in 16 bits: from more on its conversion is shared by enough rows
MANY = 1024  # of whole numbers: as bench_products.py measures, XLA is level in 4 bits from twice as many on
PACKED = 32  # inputs that a step reads together, all of one group
FORMS = {"bfloat16": "bf16", "float16": "f16", "int8": "s8"}  # by a weight's dtype
EXPERTS = FORMS | {"float32": "f32"}  # which XLA reads as fast, but copies first where it is one of many
FLOATS = ("float32", "bfloat16", "float16")  # of scales and offsets


def takes(x: jax.Array, weight: jax.Array, forms: dict[str, str] = FORMS) -> bool:
    """Is there a product for them?  x [R I], weight [O I]"""
    return x.shape[0] <= (MANY if weight.dtype == jnp.int8 else ROWS) and weight.dtype.name in forms and multiplies()


def takes_groups(x: jax.Array, weight: Any) -> bool:
    """Is there a product for them?  x [R I], weight a Groupwise [O I]"""
    plain = all(part.dtype.name in FLOATS for part in jax.tree.leaves((weight.scale, weight.offset)))
    return x.shape[0] <= MANY and weight.whole and plain and weight.group % PACKED == 0 and multiplies()


def takes_experts(x: jax.Array, weight: Any) -> bool:
    """Is there a product for them, of as many weights?  x [R I], the rows that one of them has, weight [E*O I] of any kind"""
    if hasattr(weight, "bits"):
        return takes_groups(x, weight)
    numbers = getattr(weight, "values", weight)  # of an Int8
    return isinstance(numbers, jax.Array) and takes(x, numbers, EXPERTS)


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Every row of x with every row of weight, x in float32.  x [R I], weight [O I] -> [R O] float32

    A row has the same bits in whatever number of rows, and of threads. Its derivative is that of XLA's product.
    """
    return multiply(x.astype(jnp.float32), weight)


@jax.custom_jvp
def multiply(x: jax.Array, weight: jax.Array) -> jax.Array:
    """product, of float32."""
    like = jax.eval_shape(by_xla, x, weight)  # which says, on a mesh, whose members have numbers of their own
    return jax.ffi.ffi_call(f"nanollm_{FORMS[weight.dtype.name]}", like, vmap_method="sequential")(x, weight)


@multiply.defjvp
def along(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """multiply, and how it changes along a change of x and of the weight."""
    (x, weight), (dx, dweight) = primals, tangents
    return multiply(x, weight), by_xla(dx, weight) + by_xla(x, dweight)


def by_xla(x: jax.Array, weight: jax.Array) -> jax.Array:
    """multiply, in XLA's words."""
    return jnp.einsum("RI,OI->RO", x, weight.astype(jnp.float32), precision="highest")


def product_in_groups(x: jax.Array, weight: Any, plain: Callable[[jax.Array, Any], jax.Array]) -> jax.Array:
    """product, of a Groupwise. plain is a function of the same arguments, which is differentiated in place of this."""

    @jax.custom_jvp
    def multiplied(x: jax.Array, weight: Any) -> jax.Array:
        like = jax.eval_shape(plain, x, weight)
        call = jax.ffi.ffi_call(f"nanollm_g{weight.bits}", like, vmap_method="sequential")
        return call(x, *jax.tree.leaves(weight))  # numbers, scales, and offsets where there are any

    @multiplied.defjvp
    def along(primals: tuple[jax.Array, Any], tangents: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
        return multiplied(*primals), jax.jvp(plain, primals, tangents)[1]

    return multiplied(x.astype(jnp.float32), weight)


def product_by_expert(x: jax.Array, weight: Any, sizes: jax.Array, plain: Callable[..., jax.Array]) -> jax.Array:
    """product, of rows in consecutive groups, each with a weight of its own, which is read where it stands.

    x [R I], weight [E*O I], sizes [E] int32 -> [R O] float32. plain is a function of the same arguments, as above.
    """
    E, R = sizes.shape[0], x.shape[0]

    @jax.custom_jvp
    def multiplied(x: jax.Array, weight: Any, sizes: jax.Array) -> jax.Array:
        like = jax.eval_shape(plain, x, weight, sizes)
        bits = getattr(weight, "bits", None)  # of a Groupwise
        scale = None if bits else getattr(weight, "scale", None)  # of an Int8: comes behind its sums
        numbers = weight if scale is None else weight.values
        form = f"g{bits}" if bits else EXPERTS[numbers.dtype.name]
        each = [part.reshape(E, -1, part.shape[-1]) for part in jax.tree.leaves(numbers)]
        found = jax.ffi.ffi_call(f"nanollm_{form}", like, vmap_method="sequential")(x, *each, sizes)
        if scale is None:
            return found
        return found * scale.reshape(E, -1)[jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(R), side="right")]

    @multiplied.defjvp
    def along(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        return multiplied(*primals), jax.jvp(plain, primals, tangents)[1]

    return multiplied(x.astype(jnp.float32), weight, sizes)
