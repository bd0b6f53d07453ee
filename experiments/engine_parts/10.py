# 10 · Attention
"""An inference engine in one file, as it grows in the chapters of the course.

Letters: T tokens, that attend to S; D numbers in a vector of the residual stream; H numbers in one of a head.
"""

import math

import jax.numpy as jnp


def softmax(scores):
    """[... S] -> [... S], positive and with the sum 1: chapter 09"""
    powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def visible(queries, keys):
    """May a query see a key?  positions [T] and [S] -> [T S] bool"""
    return queries[:, None] >= keys[None, :]


def attend(q, k, v, mask):
    """What each query fetches.  q [T H], k and v [S H], mask [T S] -> [T H]"""
    scores = q @ k.T / math.sqrt(q.shape[-1])  # [T S]
    return softmax(jnp.where(mask, scores, -jnp.inf)) @ v
