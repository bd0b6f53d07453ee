"""Keys and values in 8 bits: a quarter of float32's memory and half of bfloat16's, but for one number of each vector.

Each vector of a token and head is whole numbers from -127 to 127 times the one float32 that its largest number needs. A layer
keeps its buffers as they are or so, and does not care: what it moves are all arrays of a buffer alike, by slot.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.letters import axes, pytree, static

LARGEST = 127


@pytree
class Rounded:
    """values [B*K S H] int8 times scale [B*K S] float32, in place of a buffer in dtype."""

    values: jax.Array = axes("B*K S H")
    scale: jax.Array = axes("B*K S")
    dtype: np.dtype = static()

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the buffer."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers and their scales."""
        return self.values.nbytes + self.scale.nbytes


Buffer = jax.Array | Rounded


def empty(shape: tuple[int, int, int], dtype: Any, kept: str, placed: Any) -> Buffer:
    """A buffer of zeros; kept: "int8", or "auto" for dtype itself. placed(letters) says where an array with these axes lies.

    Vectors without a width have no scale either.
    """
    if kept == "auto" or shape[2] == 0:
        return jnp.zeros(shape, dtype, device=placed("B*K S H"))
    scale = jnp.zeros(shape[:2], jnp.float32, device=placed("B*K S"))
    return Rounded(jnp.zeros(shape, jnp.int8, device=placed("B*K S H")), scale, np.dtype(dtype))


def keep(buffer: Buffer, vectors: jax.Array) -> Buffer:
    """New vectors in the form of a buffer.  [.. H] -> [.. H], and [..] beside it where there is a scale of each"""
    if not isinstance(buffer, Rounded):
        return vectors.astype(buffer.dtype)
    wide = vectors.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / LARGEST
    values = jnp.round(wide / jnp.where(scale == 0, 1, scale)[..., None]).astype(jnp.int8)
    return Rounded(values, scale, buffer.dtype)


def read(kept: Buffer) -> jax.Array:
    """The vectors that are kept so.  [.. H]"""
    if not isinstance(kept, Rounded):
        return kept
    return (kept.values * kept.scale[..., None]).astype(kept.dtype)


def parts(k: Buffer, v: Buffer) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array] | None]:
    """Keys and values as attention takes them: in place of float32 as they are kept, and the scales of both.  [.. H], [..]"""
    if isinstance(k, Rounded) and isinstance(v, Rounded) and k.dtype == jnp.float32:
        return k.values, v.values, (k.scale, v.scale)
    return read(k), read(v), None


def seen(buffer: Buffer, vectors: jax.Array) -> jax.Array:
    """What is read of new vectors once a buffer has them.  [.. H] -> [.. H]

    Its derivative is that of the vectors as they were: what is rounded has none.
    """
    if not isinstance(buffer, Rounded):
        return vectors.astype(buffer.dtype)
    there = jax.custom_jvp(lambda vectors: read(keep(buffer, vectors)))
    there.defjvp(lambda primals, tangents: (there(*primals), tangents[0].astype(buffer.dtype)))
    return there(vectors)


def name(kept: Buffer) -> str:
    """How a buffer's numbers are kept, in a word."""
    return (kept.values if isinstance(kept, Rounded) else kept).dtype.name
