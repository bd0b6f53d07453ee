"""The tree of what else could have been said: the likeliest continuations of a prompt, with their probabilities."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax import cache as kv
from nanollm_jax import model as transformer
from nanollm_jax.cache import KVCache, init_cache
from nanollm_jax.checks import check_counts
from nanollm_jax.config import ModelConfig
from nanollm_jax.engine import buckets
from nanollm_jax.engine.request import check_room
from nanollm_jax.errors import RequestError
from nanollm_jax.glass import passes
from nanollm_jax.loading import Model
from nanollm_jax.params import Params


@dataclass(repr=False)
class Branch:
    """A token, and what may follow.

    probability  of the token behind what was before it; total of it and all since the prompt
    children     the best tokens behind it, the best first; none where it was not followed further
    """

    token: int
    piece: str
    probability: float
    total: float
    children: list[Branch] = field(default_factory=list)

    def lines(self, depth: int = 0) -> Iterator[str]:
        """It and all behind it, a line each."""
        yield f"{'  ' * depth}{self.piece!r} {self.probability:.1%}" + f" ({self.total:.2%})" * (depth > 1)
        for child in self.children:
            yield from child.lines(depth + 1)

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        """The same, in a notebook."""
        return f"<pre>{html.escape(repr(self))}</pre>"


def tree(model: Model, prompt: Any, *, width: int = 3, depth: int = 4, rows: int = 16) -> Branch:
    """What the model would say behind a prompt, and what else.  -> the prompt's last token, with its children

    width  how many tokens are tried behind each
    depth  how many tokens a path has
    rows   how many paths are followed further at each depth: the greedy one, and those that are most probable in all
    The prompt is read once; a path goes on in a copy of its rows of the cache, all of one depth together. Probabilities are the
    model's own, before any setting. Raises RequestError for a prompt that leaves no room, and for a model on a mesh.
    """
    width, depth, rows = check_counts(width=width, depth=depth, rows=rows)
    text = passes.text_of(model, prompt)
    config, size = model.config, len(text.ids)
    check_room(model, size, depth)
    passes.check_switch(model, size, depth)
    if width > config.vocab_size:
        raise RequestError(f"width is {width}; expected at most the {config.vocab_size} tokens of the vocabulary.")
    capacity = buckets.capacity(size + depth, config.max_positions)
    rows = min(rows, width ** (depth - 1))
    how = {"capacity": capacity, "rows": rows, "width": width}
    found, cache = passes.run(begin, model, *text.padded, **how)
    root = Branch(text.ids[-1], text.pieces[-1], 1.0, 1.0)
    leaves = [root]  # of each row
    for level in range(depth):
        ids, logprobs = jax.device_get(found)
        below: list[tuple[int, Branch]] = []
        for row, leaf in enumerate(leaves):
            chances = np.exp(logprobs[row].astype(np.float64))
            for token, chance in zip(ids[row].tolist(), chances.tolist(), strict=True):
                child = Branch(token, passes.pieces_of(model, [token])[0], chance, leaf.total * chance)
                leaf.children.append(child)
                below.append((row, child))
        # the first child of the first row is the greedy path
        below = below[:1] + sorted(below[1:], key=lambda pair: -pair[1].total)
        if level + 1 < depth:
            below = below[:rows]
            leaves = [child for _, child in below]
            index = [*range(len(below)), *[0] * (rows - len(below))]
            parents = np.array([below[n][0] for n in index], np.int32)
            tokens = np.array([below[n][1].token for n in index], np.int32)
            found, cache = passes.run(go_on, model, cache, tokens, parents, width=width)
    return root


def begin(
    params: Params, tokens: jax.Array, count: jax.Array, *, config: ModelConfig, capacity: int, rows: int, width: int
) -> tuple[Any, KVCache]:
    """Read a prompt.  tokens [1 T], count [1] -> the best tokens behind it and their logprobs [rows width], a cache of rows"""
    cache = init_cache(config, 1, capacity, params["embedding"]["tokens"].dtype)
    x, cache = transformer.hidden_states(params, tokens, count, cache, config=config)
    last = jnp.take_along_axis(x, count[:, None, None] - 1, axis=1)
    all_rows = jnp.zeros(rows, jnp.int32)
    return best(transformer.logits(params, last, config)[all_rows, 0], width), kv.repeat(cache, all_rows)


def go_on(
    params: Params, cache: KVCache, token: jax.Array, parent: jax.Array, *, config: ModelConfig, width: int
) -> tuple[Any, KVCache]:
    """A token [rows] more behind each of some rows, parent [rows]."""
    cache = kv.repeat(cache, parent)
    x, cache = transformer.hidden_states(params, token[:, None], jnp.ones_like(token), cache, config=config)
    return best(transformer.logits(params, x, config)[:, 0], width), cache


def best(logits: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """[R V] -> ids and logprobs [R width], the best first"""
    logprobs, ids = jax.lax.top_k(jax.nn.log_softmax(logits), width)
    return ids, logprobs
