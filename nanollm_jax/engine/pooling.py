"""What is wanted of a text that nobody goes on with: its states as one vector, or how likely a few tokens are behind it.

    total   the sum of a piece's states; the host adds those of a text's pieces up
    judge   the logits of some tokens behind a text

The text is read as every prompt is, piece by piece in a row of the engine: so its vector has the same bits alone and beside
others, and nobody who writes waits for more of it than one piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from nanollm_jax import model
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.programs import program
from nanollm_jax.letters import axes, pytree
from nanollm_jax.params import Params, for_rows

if TYPE_CHECKING:
    from nanollm_jax.engine.pieces import Pieces


@pytree
class Vectors:
    """A vector of each row: the sum of its states or the last one [B D], or logits [B X]."""

    vector: jax.Array = axes("B D")


def pooled(params: Params, pieces: Pieces, states: jax.Array, final: jax.Array, *, config: ModelConfig) -> Vectors:
    """What these pieces give to vectors.  states [R T D], and final [G D], those at the last tokens, as read gives them"""
    count, _, _, _, adapter, *_ = pieces.numbers
    if pieces.wanted == "mean":
        return total(states, count, config=config)
    return Vectors(final) if pieces.wanted == "last" else judge(params, final, adapter, pieces.labels, config=config)


@program()
def total(x: jax.Array, count: jax.Array, *, config: ModelConfig) -> Vectors:
    """The sum of the states of the real tokens of a piece.  x [R T D], count [G] -> [R D] float32"""
    count = count[: len(x)]
    real = jnp.arange(x.shape[1])[None, :, None] < count[:, None, None]
    return Vectors(jnp.sum(jnp.where(real, x.astype(jnp.float32), 0), axis=1))


@program()
def judge(params: Params, x: jax.Array, adapter: jax.Array, labels: jax.Array, *, config: ModelConfig) -> Vectors:
    """The logits of tokens behind a text.  x [G D], adapter [G], labels [G X] -> [G X] float32"""
    logits = model.logits(for_rows(params, adapter), x[:, None], config)[:, 0]
    return Vectors(jnp.take_along_axis(logits, labels, axis=1))
