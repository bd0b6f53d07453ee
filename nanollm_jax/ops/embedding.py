"""From ids to vectors at the bottom, and from vectors to logits at the top."""

from __future__ import annotations

import jax

from nanollm_jax.ops.linear import product


@jax.named_scope("embedding")
def embed(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Look up one vector per id.  table [V D] (or [P D]), ids [B T] -> [B T D]

    Ids past the table read its last row: padding positions may lie there, and nobody looks at what they compute.
    """
    return table.at[ids].get(mode="clip")


@jax.named_scope("logits")
def unembed(table: jax.Array, x: jax.Array) -> jax.Array:
    """Score every entry of the vocabulary.  table [V D], x [B T D] -> [B T V] float32"""
    B, T, D = x.shape
    return product(x.reshape(B * T, D), table).reshape(B, T, table.shape[0])
