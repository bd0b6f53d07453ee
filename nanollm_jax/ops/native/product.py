"""Products of a few rows with a weight in 16 or 8 bits, in C."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nanollm_jax.ops.native.library import wanted

ROWS = 16  # from more on the conversion of a weight is shared by enough rows
FORMS = {"bfloat16": "bf16", "float16": "f16", "int8": "s8"}  # by a weight's dtype


def takes(x: jax.Array, weight: jax.Array) -> bool:
    """Is there a product for them?  x [R I], weight [O I]"""
    return x.shape[0] <= ROWS and weight.dtype.name in FORMS and wanted()


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
