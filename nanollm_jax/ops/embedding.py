"""From ids to vectors at the bottom, and from vectors to logits at the top. A mesh splits the vocabulary of both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.ops.kept import Kept, Weight
from nanollm_jax.ops.linear import add, linear, product
from nanollm_jax.ops.norm import rms_norm


@jax.named_scope("embedding")
def look_up(table: Weight, ids: jax.Array) -> jax.Array:
    """Look up one vector per id.  table [V D] (or [P D]), ids [B T] -> [B T D]

    Ids past the table read its last row: padding positions may lie there, and nobody looks at what they compute.
    """
    if isinstance(table, Kept):
        return table.rows(ids)
    # Together with ids, which change: XLA on CPU looks 16 bits up in float32, and of a table alone in a loop it converts all.
    array, ids = jax.lax.optimization_barrier((table, ids))
    return array.at[ids].get(mode="clip")


@jax.named_scope("embedding")
def embed(table: Weight, ids: jax.Array) -> jax.Array:
    """look_up in a table whose rows a mesh may split: who has the row gives it, the others zeros, and they are summed."""
    if not collectives.split():
        return look_up(table, ids)
    V = table.shape[0]
    own = ids - collectives.index() * V
    found = jnp.where(((own >= 0) & (own < V))[:, :, None], look_up(table, own), 0)
    return collectives.psum(found)


@jax.named_scope("embedding")
def inputs(
    p: dict[str, Any] | None, tokens: jax.Array, x: jax.Array, layers: int, eps: float, offset: float
) -> tuple[jax.Array, ...]:
    """What each layer is told of every token besides the stream.  tokens [B T], x [B T D] -> layers x [B T I], or ()

    p holds a table of tokens [V L*I], a projection [L*I D] of what the stream begins with, and the scale [I] of a norm: the
    mean of the row, stretched by sqrt(I), and of the projection, normalised layer by layer, times sqrt(2).
    Google DeepMind 2025, Gemma 3n, by the reference's implementation.
    """
    if p is None:
        return ()
    B, T, D = x.shape
    width = p["norm"]["scale"].shape[0]
    row = embed(p["tokens"], tokens)
    row = (row * jnp.asarray(width**0.5, row.dtype)).reshape(B, T, layers, width)
    said = (linear(x, p["projection"]) * jnp.asarray(D**-0.5, x.dtype)).reshape(B, T, layers, width)
    told = (rms_norm(said, p["norm"]["scale"], eps, offset) + row) * jnp.asarray(0.5**0.5, x.dtype)
    return tuple(told[:, :, layer] for layer in range(layers))


def scorers(table: Weight, ids: jax.Array) -> jax.Array:
    """What unembed multiplies by for these ids: rows of the table, or what is beside it too.  ids [X] -> [X D] float32"""
    if hasattr(table, "outputs"):  # a kind that is looked up otherwise than it is multiplied
        return table.outputs(ids)
    return look_up(table, ids[None])[0].astype(jnp.float32)


@jax.named_scope("logits")
def unembed(table: Weight, x: jax.Array, vocab_size: int | None = None, bias: jax.Array | None = None) -> jax.Array:
    """Score every entry of the vocabulary.  table [V D], x [B T D], bias [V] -> [B T V] float32

    Rows of the table past vocab_size are padding, and their scores are cut off.
    """
    B, T, D = x.shape
    scores = add(product(x.reshape(B * T, D), table).reshape(B, T, table.shape[0]), bias)
    return collectives.all_gather(scores)[:, :, :vocab_size]
