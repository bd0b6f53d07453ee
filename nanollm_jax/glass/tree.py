"""The tree of what else could have been said: the likeliest continuations of a prompt, with their probabilities."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax import cache as kv
from nanollm_jax import model as transformer
from nanollm_jax.cache import KVCache, init_cache
from nanollm_jax.checks import check_counts
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.programs import parallelize
from nanollm_jax.engine import buckets
from nanollm_jax.engine.request import check_room
from nanollm_jax.errors import RequestError
from nanollm_jax.glass import passes
from nanollm_jax.glass.asking import changes_of, model_names
from nanollm_jax.glass.edits import Edit
from nanollm_jax.glass.harvest import harvest
from nanollm_jax.glass.texts import Source, Text, check_box, model_of, of_each, pieces_of, text_of
from nanollm_jax.glass.watch import Changes, Watched
from nanollm_jax.glass.watched_programs import changed
from nanollm_jax.params import Params

Edits = tuple[tuple[str, Edit], ...]


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


@of_each("prompt")
def tree(
    source: Source,
    prompt: Any = None,
    *,
    width: int = 3,
    depth: int = 4,
    rows: int = 16,
    change: Changes = None,
    since: Any = "prompt",
    row: int = 0,
) -> Any:
    """What the model would say behind a prompt, and what else.  -> the prompt's last token, a Branch, with its children

    source  a model, and a prompt or its ids; or a box that watch gave, of which a row goes on, with the changes that it has
    width   how many tokens are tried behind each
    depth   how many tokens a path has
    rows    how many paths are followed further at each depth: the greedy one, and those that are most probable in all
    change, since   as in watch: values inside that are changed, and from which position on
    The prompt is read once; a path goes on in a copy of its rows of the cache, all of one depth together. Probabilities are the
    model's own, before any setting. Of several prompts, or a list of rows, a list of trees. Raises RequestError as watch does,
    and for a prompt that leaves no room.
    """
    width, depth, rows = check_counts(width=width, depth=depth, rows=rows)
    if isinstance(source, Watched):
        check_box(source, prompt, row)
        if change is not None:
            raise RequestError(
                "a box has its changes already; leave change out, or give the model in place of the box."
            )
        text, edits = Text(model_of(source, row), source.tokens[row]), dict(source.programs.asked.change)
        changes = source.programs.requests[source.tickets[row].number].changes
        edits = {name: edit for name, edit in edits.items() if name in changes}
    else:
        text = text_of(source, prompt)
        edits, (own,) = changes_of(model_names(text.model), change, since, [text.ids], 1)
        changes = own.changes
    model, config, size = text.model, text.config, len(text.ids)
    check_room(model, size, depth)
    passes.check_switch(model, size, depth)
    if width > config.vocab_size:
        raise RequestError(f"width is {width}; expected at most the {config.vocab_size} tokens of the vocabulary.")
    how = {"width": width, "edits": tuple(edits.items())}
    rows = min(rows, width ** (depth - 1))
    capacity = buckets.capacity(size + depth, config.max_positions)
    found, cache = passes.run_pass(begin, model, *text.padded, changes, capacity=capacity, rows=rows, **how)
    root = Branch(text.ids[-1], text.pieces[-1], 1.0, 1.0)
    leaves = [root]  # of each row
    for level in range(depth):
        ids, logprobs = passes.fetched(found)
        below: list[tuple[int, Branch]] = []
        for row, leaf in enumerate(leaves):
            chances = np.exp(logprobs[row].astype(np.float64))
            for token, chance in zip(ids[row].tolist(), chances.tolist(), strict=True):
                child = Branch(token, pieces_of(model, [token])[0], chance, leaf.total * chance)
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
            found, cache = passes.run(go_on, model, cache, tokens, parents, changes, **how)
    return root


def begin(
    params: Params, tokens: jax.Array, count: jax.Array, changes: Any,
    *, config: ModelConfig, mesh: Mesh | None, edits: Edits, kept: str, capacity: int, rows: int, width: int,
) -> tuple[Any, KVCache]:  # fmt: skip
    """Read a prompt.  tokens [1 T], count [1] -> the best tokens behind it and their logprobs [rows width], a cache of rows"""
    how = {"kept": kept, "capacity": capacity, "rows": rows, "width": width}
    return everywhere(read, params, tokens, count, changes=changes, config=config, mesh=mesh, edits=edits, **how)


def go_on(
    params: Params, cache: KVCache, token: jax.Array, parent: jax.Array, changes: Any,
    *, config: ModelConfig, mesh: Mesh | None, edits: Edits, width: int,
) -> tuple[Any, KVCache]:  # fmt: skip
    """A token [rows] more behind each of some rows, parent [rows]."""
    how = {"changes": changes, "config": config, "mesh": mesh, "edits": edits}
    return everywhere(follow, params, token, parent, cache, width=width, **how)


def everywhere(
    function: Callable[..., Any], params: Params, tokens: jax.Array, beside: jax.Array, *rest: Any,
    changes: Any, config: ModelConfig, mesh: Mesh | None, edits: Edits, **how: Any,
) -> Any:  # fmt: skip
    """A function of rows, changed, on all members of a mesh: those that split rows all have the same ones, as paths need the
    rows of each other's parents."""
    dp = 1 if mesh is None else mesh.shape["dp"]
    held = passes.held(config, mesh)
    copies = lambda x: jnp.concatenate([x] * dp)  # noqa: E731
    change = {}
    for name, edit in edits:
        since, arrays = changes[name]
        count = dp * len(tokens)
        of_rows = lambda x, count=count: jnp.broadcast_to(x, (count, *jnp.shape(x)))  # noqa: E731
        # of a prompt there are logits behind its last token alone
        at = copies(beside - 1) if function is read and name == "logits" else None
        change[name] = (partial(changed, edit, name), (of_rows(since), jax.tree.map(of_rows, arrays), at))
    member = parallelize(partial(function, config=held, **how), mesh, held)
    return harvest(member, (), change, unpadded=config)(params, copies(tokens), copies(beside), *rest)[0]


def read(
    params: Params, tokens: jax.Array, count: jax.Array,
    *, config: ModelConfig, kept: str, capacity: int, rows: int, width: int,
) -> tuple[Any, KVCache]:  # fmt: skip
    """begin, of one member."""
    cache = init_cache(config, tokens.shape[0], capacity, params["embedding"]["tokens"].dtype, kept=kept)
    x, cache = transformer.hidden_states(params, tokens, count, cache, config=config)
    last = jnp.take_along_axis(x, count[:, None, None] - 1, axis=1)
    all_rows = jnp.zeros(rows, jnp.int32)
    return best(transformer.logits(params, last, config)[all_rows, 0], width), kv.repeat(cache, all_rows)


def follow(
    params: Params, token: jax.Array, parent: jax.Array, cache: KVCache, *, config: ModelConfig, width: int
) -> tuple[Any, KVCache]:
    """go_on, of one member."""
    cache = kv.repeat(cache, parent)
    x, cache = transformer.hidden_states(params, token[:, None], jnp.ones_like(token), cache, config=config)
    return best(transformer.logits(params, x, config)[:, 0], width), cache


def best(logits: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """[R V] -> ids and logprobs [R width], the best first"""
    logprobs, ids = jax.lax.top_k(jax.nn.log_softmax(logits), width)
    return ids, logprobs
