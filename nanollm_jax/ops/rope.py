"""Rotary position embedding: a query and a key are turned by angles that grow with their positions, so that their
product depends on how far apart they are.  Su et al. 2021, "RoFormer", section 3.2; arXiv:2104.09864.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.ops.rope_scaling import llama3, part, yarn


def frequencies(head_dim: int, theta: float, scaling: Any = None) -> tuple[np.ndarray, float]:
    """Radians per position of each pair of a head, [H/2] float32, and the factor on rotated vectors.

    longrope has two rows of them, [2 H/2]: for texts up to the original length, and for longer ones.

    scaling is None or one of config.py's records, told apart by its `kind`. Constants: computed with NumPy when the
    program is traced, in float32 step by step, because at position 100,000 the last bit of a frequency is visible.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    periods = np.power(np.float32(theta), exponents)
    plain = np.float32(1) / periods
    match getattr(scaling, "kind", None):
        case None:
            return plain, 1.0
        case "linear":
            return plain / np.float32(scaling.factor), 1.0
        case "llama3":
            return llama3(plain, scaling), 1.0
        case "yarn":
            return yarn(plain, theta, scaling), scaling.attention_factor
        case "part":
            return part(plain, scaling), 1.0
        case "longrope":
            factors = np.array([scaling.short_factors, scaling.long_factors], np.float32)
            return np.float32(1) / (factors * periods[None]), scaling.attention_factor
        case kind:
            raise NotImplementedError(f"rope scaling {kind!r}")


def turns_of_layers(
    ropes: Sequence[tuple[Any, int] | None], positions: jax.Array, end: jax.Array
) -> list[tuple[jax.Array, jax.Array] | None]:
    """turns for each layer's rope, each once.  positions [B T], end [B] -> L x two [B T 1 width/2] float32

    A rope is config.py's record of theta and scaling with the width that it turns, or None for a layer without. end is how
    long each row's text is: longrope turns long ones otherwise.
    """
    known: dict[Any, Any] = {None: None}
    for rope, width in filter(None, dict.fromkeys(ropes)):
        freqs: Any
        freqs, factor = frequencies(width, rope.theta, rope.scaling)
        if freqs.ndim == 2:
            freqs = jnp.where((end > rope.scaling.original_max_positions)[:, None], freqs[1][None], freqs[0][None])
        known[rope, width] = turns(positions, freqs, factor)
    return [known[one] for one in ropes]


@jax.named_scope("rope")
def turns(positions: jax.Array, freqs: Any, factor: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each pair's angle at each position, times factor.  [B T], [H/2] or [B H/2] -> two [B T 1 H/2]

    float32: bfloat16 cannot tell position 257 from 256, and the angle depends on it.
    """
    angle = positions.astype(jnp.float32)[:, :, None, None] * jnp.atleast_2d(freqs)[:, None, None, :]

    def both(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
        return factor * jnp.cos(angle), factor * jnp.sin(angle)

    def once(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.cond(positions[0, 0] < 0, lambda angle: (angle, angle), both, angle)

    # No position is negative, but XLA cannot know: on CPU it would otherwise compute the same cosines in every layer.
    return jax.lax.platform_dependent(angle, cpu=once, default=both)


@jax.named_scope("rope")
@jax.jit
def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn each head's pairs (i, i + R/2) by their angles.  x [B T N H], cos and sin [B T 1 R/2] -> [B T N H]

    R is H, or less: then the channels from R on stay as they are.
    """
    R = 2 * cos.shape[-1]
    left, right = jnp.split(x[..., :R].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
    return turned if x.shape[-1] == R else jnp.concatenate([turned, x[..., R:]], axis=-1)


@jax.named_scope("rope")
@jax.jit
def rotate_neighbours(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """rotate for pairs (2i, 2i + 1), the order of the paper's equation 34.  x [B T N H], cos and sin [B T 1 R/2] -> [B T N H]

    The angles are in the same order: what rotate does with (0 4) (1 5) (2 6) (3 7) is done with (0 1) (2 3) (4 5) (6 7).
    """
    R = 2 * cos.shape[-1]
    even, odd = (x[..., first:R:2].astype(jnp.float32) for first in (0, 1))
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return jnp.concatenate([turned.reshape(*x.shape[:-1], R).astype(x.dtype), x[..., R:]], axis=-1)


def sharpen(q: jax.Array, positions: jax.Array, sharpening: Any) -> jax.Array:
    """Queries that grow with where they stand, or as they are without that.  q [B T N H], positions [B T] -> [B T N H]

    sharpening is config.py's record: 1 + beta ln(1 + floor(position / every)), so that far positions look as sharply at a
    few of many keys as near ones at a few of few.  Nakanishi 2025, arXiv:2501.19399.
    """
    if sharpening is None:
        return q
    steps = (positions // sharpening.every).astype(jnp.float32)[:, :, None, None]
    return (q * (1 + sharpening.beta * jnp.log1p(steps))).astype(q.dtype)


ROTATIONS = {"halves": rotate, "neighbours": rotate_neighbours}  # by which channels of a head are a pair
