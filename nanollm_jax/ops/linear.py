"""Matrix products, which are nearly everything that a transformer does."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def contract(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of two arrays, accumulated and returned in float32.

    Devices differ in how they multiply float32 by default (TF32 on a GPU, one bfloat16 pass on a TPU); "highest" asks
    all of them for real float32. It changes nothing for 16-bit operands, whose products are exact in float32.
    """
    return jnp.einsum(equation, a, b, precision="highest", preferred_element_type=jnp.float32)


def linear(equation: str, x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x times weight as the equation says, plus bias if there is one, in the dtype of x.

    "BTD,DNH->BTNH" is a projection to heads; the bias has the weight's output axes.
    """
    y = contract(equation, x, weight)
    if bias is not None:
        y = y + jnp.expand_dims(bias.astype(jnp.float32), tuple(range(y.ndim - bias.ndim)))
    return y.astype(x.dtype)


def merge_heads(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """The projection back from heads, "BTNH,NHD->BTD".  x [B T N H], weight [N H D], bias [D] -> [B T D]

    Written with N and H as one axis: an einsum over both contracts them in alphabetical order, and XLA transposes the
    whole weight for that, once per token.
    """
    B, T, N, H = x.shape
    D = weight.shape[-1]
    return linear("BTF,FD->BTD", x.reshape(B, T, N * H), weight.reshape(N * H, D), bias)
