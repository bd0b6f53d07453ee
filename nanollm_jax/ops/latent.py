"""Attention over latents: keys and values of all heads are made of one vector a position, and that is what the cache holds.

DeepSeek-AI 2024, arXiv:2405.04434, section 2.1. Instead of making keys of the latents that a query looks at, the query is
taken to the latents: q . (up c) is (q up) . c, and the mean of values is up times the mean of latents. A head's query is then
as wide as a latent, all heads look at the same vectors, and what attention gives becomes a value behind it. A prompt's
products are wider so than with keys and values made once; what a step of decoding reads is the latents alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.ops.linear import contract, linear
from nanollm_jax.ops.norm import rms_norm

EPS = 1e-6  # of the norms of latents, whatever a file says of the others


@jax.named_scope("attention")
def project(p: dict[str, Any], h: jax.Array, latent: Any, heads: int) -> tuple[jax.Array, jax.Array]:
    """Queries as the latents meet them, and the latents.  h [B T D] -> [B T N H], [B T K H], H = rotated + width

    In both the part to be rotated comes first. K is 1, or one copy for each member of a mesh, `heads` together. latent is
    config.py's record; p holds kv_down [H D], kv_up [N X C] whose X are a
    head's key and value, wq [N Y D] whose Y are its own part and the rotated one, or through q_down [J D] wq [N Y J].
    """
    q = rms_norm(linear(h, p["q_down"]), p["q_norm"]["scale"], EPS) if "q_down" in p else h
    q = linear(q, p["wq"])  # [B T N Y]
    own, rotated = q[..., : latent.key], q[..., latent.key :]
    met = by_heads("BTNY,NYC->BTNC", own, p["kv_up"][:, : latent.key]).astype(h.dtype)
    down = linear(h, p["kv_down"])  # [B T H]
    made = rms_norm(down[..., latent.rotated :], p["kv_norm"]["scale"], EPS)
    shared = jnp.concatenate([down[..., : latent.rotated], made], axis=-1)
    B, T, H = shared.shape
    copies = jnp.broadcast_to(shared[:, :, None], (B, T, heads // collectives.members(), H))
    return jnp.concatenate([rotated, met], axis=-1), copies


@jax.named_scope("attention")
def values(p: dict[str, Any], mixed: jax.Array, latent: Any) -> jax.Array:
    """The mean of latents that each head took -> that of its values.  [B T N H] float32 -> [B T N A] float32"""
    up = p["kv_up"][:, latent.key :]
    return by_heads("BTNC,NXC->BTNX", mixed[..., latent.rotated :].astype(up.dtype), up)


def by_heads(equation: str, x: jax.Array, up: jax.Array) -> jax.Array:
    """contract of each head's vectors with its own part of a weight. XLA on CPU has none of 16 bits."""
    wide = lambda x, up: contract(equation, x.astype(jnp.float32), up.astype(jnp.float32))  # noqa: E731
    return jax.lax.platform_dependent(x, up, cpu=wide, default=lambda x, up: contract(equation, x, up))
