"""What a model makes of a text, as one vector: the mean of its last states, or the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nanollm_jax.checks import check_counts
from nanollm_jax.collectives import whole
from nanollm_jax.decode import read_states
from nanollm_jax.engine import buckets
from nanollm_jax.engine.request import encode_prompts
from nanollm_jax.errors import NumericsError, RequestError, shown
from nanollm_jax.loading import Model

POOLING = ("mean", "last")


def embed(
    model: Model,
    texts: str | Sequence[Any],
    *,
    pooling: str = "mean",
    normalize: bool = True,
    batch: int = 8,
    adapter: str | None = None,
) -> np.ndarray:
    """Texts to vectors: states behind the last layer and its norm, of any model.  One text -> [D], a list -> [n D] float32

    texts      as generate takes prompts: a text, a list of texts, a list of ids (one text), or lists of ids
    pooling    "mean" of the states at all tokens, BOS included; or "last", the state at the last token, the only one that a
               causal model makes of the whole text
    normalize  to length 1, so that a product of two is their cosine
    batch      texts per call of the compiled program
    adapter    by its name, one of those that the model was loaded with; None is the model as it is
    A model that was trained to write makes rough embeddings; one that was trained to embed says which pooling it wants.
    Raises RequestError for what cannot be read, NumericsError where the model computes no numbers.
    """
    if pooling not in POOLING:
        raise RequestError(f"pooling is {shown(pooling)}; expected {' or '.join(POOLING)}.")
    (batch,) = check_counts(batch=batch)
    rows, single = encode_prompts(model, texts)
    own = model.adapter(adapter)
    limit = model.config.max_positions
    for n, ids in enumerate(rows):
        if len(ids) > limit:
            raise RequestError(f"text {n} has {len(ids)} tokens, the model {limit} positions; shorten it.")
    vectors: np.ndarray = np.zeros((len(rows), model.config.hidden_size), np.float32)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    for first in range(0, len(order), batch):
        part = order[first : first + batch]
        T = buckets.text(len(rows[part[0]]), limit)
        size = batch if len(order) > batch else len(part)
        tokens = np.zeros((model.dp * -(-size // model.dp), T), np.int32)
        count = np.ones(len(tokens), np.int32)
        for at, row in enumerate(part):
            count[at] = len(rows[row])
            tokens[at, : count[at]] = rows[row]
        states = whole(read_states(model.params, tokens, count, np.full_like(count, own), config=model.config))
        vectors[part] = states[: len(part), POOLING.index(pooling)]
    if not np.isfinite(vectors).all():
        raise NumericsError(f"text {int(np.argmin(np.isfinite(vectors).all(axis=1)))}: the states of its tokens")
    if normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths > 0, lengths, 1)
    return vectors[0] if single else vectors
