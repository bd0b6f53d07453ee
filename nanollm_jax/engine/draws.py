"""The draw of a row's next token, inside the compiled programs: after what, with which settings, and what comes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax import sampling as smp
from nanollm_jax.letters import axes, pytree
from nanollm_jax.sampling import History
from nanollm_jax.settings import Sampling

TOPS = 20  # alternatives to a token that can be asked for


@pytree
class Asked:
    """How the tokens of B rows are drawn: after which ids, with which settings and seed, and how many of them.

    left is how many tokens a row may still draw, tops how many alternatives to each it wants to see. free: no grammar says
    after each token which ones may come next, so that several can be drawn in a step. adapter is the number of each row's own.
    """

    history: History
    sampling: Sampling
    seed: jax.Array = axes("B")
    tops: jax.Array = axes("B")
    left: jax.Array = axes("B")
    free: jax.Array = axes("B")
    adapter: jax.Array = axes("B")


@pytree
class Drawn:
    """Tokens at n places: ids and log-probabilities [B n], whether the row drew one there at all, whether one was guessed to
    follow the token before and would have had to be right, and the best TOPS [B n X].
    """

    token: jax.Array = axes("B T")
    logprob: jax.Array = axes("B T")
    real: jax.Array = axes("B T")
    drafted: jax.Array = axes("B T")
    top_tokens: jax.Array = axes("B T X")
    top_logprobs: jax.Array = axes("B T X")


@jax.jit  # traced once for all programs of as many rows and ids
def draw(
    asked: Asked, logits: jax.Array, length: jax.Array, wanted: jax.Array, allowed: jax.Array
) -> tuple[Asked, jax.Array, Drawn]:
    """The next token of those rows where one is wanted [B], from logits [B V], behind texts of these lengths [B], out of those
    that are allowed [B ceil(V/32)].

    -> what is asked now, which rows go on [B], and what was drawn [B]
    """
    token, logprob = smp.draw(logits, asked.sampling, asked.history, asked.seed, length, allowed)
    drawn = Drawn(token, logprob, wanted, wanted & False, *best_of(logits, jnp.where(wanted, asked.tops, 0)))
    left = asked.left - wanted
    ended = jnp.take_along_axis(asked.sampling.ends, token[:, None], axis=1)[:, 0]
    history = keep_where(wanted, smp.remember(asked.history, token), asked.history)
    return dataclasses.replace(asked, history=history, left=left), wanted & (left > 0) & ~ended, drawn


def best_of(logits: jax.Array, wanted: jax.Array, total: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The ids of the TOPS best tokens and their log-probabilities, where any row wants some.  [.. V], [..] -> [.. X] twice

    total is the logsumexp of the logits [.. 1], where it is known.
    """
    X = min(TOPS, logits.shape[-1])

    def found() -> tuple[jax.Array, jax.Array]:
        best, ids = jax.lax.top_k(logits, X)
        best = best - (jax.nn.logsumexp(logits, axis=-1, keepdims=True) if total is None else total)
        widen = (*((0, 0),) * wanted.ndim, (0, TOPS - X))
        return jnp.pad(ids, widen), jnp.pad(best, widen, constant_values=-jnp.inf)

    return jax.lax.cond(jnp.any(wanted > 0), found, lambda: none_of(wanted))


def none_of(wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What best_of gives where nobody wants any.  [..] -> [.. X] twice. Made of the rows, so that a mesh splits it as them."""
    zeros = jnp.broadcast_to(0 * wanted[..., None], (*wanted.shape, TOPS))
    return zeros, zeros.astype(jnp.float32)


def keep_where(rows: jax.Array, new: Any, old: Any) -> Any:
    """The new values in these rows [B], the old ones in the others."""
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)
