"""What somebody asks of a watched generation, by names: looked at before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.cache import init_cache
from nanollm_jax.checks import listed, real, whole
from nanollm_jax.devices.programs import forward
from nanollm_jax.engine import buckets
from nanollm_jax.engine.request import Request, longest
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass.edits import check_change
from nanollm_jax.glass.harvest import harvest
from nanollm_jax.glass.names import NAMES, check_found, expression, letters
from nanollm_jax.glass.watched_programs import NEVER, Asked, Row
from nanollm_jax.loading import Model

# what the names begin with that a layer has in this half alone
OF_HALF = {"attention": ("layers.*.attention", "layers.*.middle"), "mlp": ("layers.*.mlp",)}


def model_names(model: Model) -> dict[str, list[str]]:
    """{name: axes} of all that a model has for each of its tokens, in the order in which they are computed."""
    rows = {row: axes.split() for row, axes in NAMES.items() if "T" in axes.split() and row != "positions"}
    inside = {row: axes for row, axes in rows.items() if row.startswith("layers.*")}
    found = {"embedding": rows.pop("embedding")}
    for index, layer in enumerate(model.config.layers):
        lacks = {"layers.*.mlp.hidden"} if layer.router else {"layers.*.mlp.router"}
        lacks |= set() if layer.router and model.config.shared_size else {"layers.*.mlp.shared"}
        lacks |= set() if model.config.latent is None else {"layers.*.attention.v"}
        lacks |= set() if layer.keys_of is None else {"layers.*.attention.k", "layers.*.attention.v"}
        lacks |= set() if model.config.layer_inputs else {"layers.*.input", "layers.*.input.out"}
        other = "layers.*.recurrent." if layer.mixer is None else "layers.*.attention."
        lacks |= {row for row in inside if row.startswith(other)} - {"layers.*.attention.out"}
        lacks |= {row for row in inside if row.startswith(OF_HALF.get(layer.lacks or "", ()))}
        lacks |= {
            "layers.*.recurrent.mixed" if layer.mixer and layer.mixer.state is None else "layers.*.recurrent.convolved"
        }
        found |= {row.replace("*", str(index)): axes for row, axes in inside.items() if row not in lacks}
    return found | {row: axes for row, axes in rows.items() if row not in inside}


def expanded(names: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """{pattern: what is to be done} -> {name: the same}. Raises RequestError for patterns without names, and for two of one."""
    patterns = {pattern: expression(pattern) for pattern in asked}
    check_found(patterns, names)
    found: dict[str, Any] = {}
    for name in names:
        chosen = [pattern for pattern, chooses in patterns.items() if chooses.fullmatch(name)]
        if len({id(asked[pattern]) for pattern in chosen}) > 1:
            raise RequestError(f"{name} is asked for in two ways, by {' and by '.join(chosen)}; ask for one of them.")
        if chosen:
            found[name] = asked[chosen[0]]
    return found


def changes_of(
    names: Mapping[str, Any], change: Any, since: Any, texts: list[list[int]], n: int
) -> tuple[dict[str, Any], list[Row]]:
    """What is changed by name, and what of it each of n answers to each prompt has."""
    each = [change] * len(texts) if change is None or isinstance(change, Mapping) else listed(change)
    begins = [since] * len(texts) if isinstance(since, str) or whole(since) is not None else listed(since)
    for what, values in (("change", each), ("since", begins)):
        if values is None or len(values) != len(texts):
            raise RequestError(
                f"{what} is {shown(change if what == 'change' else since)}; give one, or one for each prompt."
            )
    edits: dict[str, Any] = {}
    rows: list[Row] = []
    first: dict[str, Any] = {}
    for own, begin, ids in zip(each, begins, texts, strict=True):  # type: ignore[arg-type]
        at = {"prompt": 0, "answer": len(ids)}.get(begin, -1) if isinstance(begin, str) else whole(begin)
        if at is None or at < 0:
            raise RequestError(f"since is {shown(begin)}; expected 'prompt', 'answer' or a position.")
        changes = {}
        for name, asked in expanded(names, own or {}).items():
            check_change(name, asked)
            edit, *arrays = asked if isinstance(asked, tuple) else (asked,)
            arrays = jax.tree.map(np.asarray, arrays)
            if strange := [
                x for x in jax.tree.leaves(arrays) if not jnp.issubdtype(x.dtype, jnp.number) and x.dtype != bool
            ]:
                raise RequestError(f"the change of {name} has arrays of {strange[0].dtype}; expected numbers.")
            shape = jax.tree.map(lambda x: (x.shape, x.dtype), arrays)
            if edits.setdefault(name, edit) != edit or first.setdefault(name, shape) != shape:
                raise RequestError(
                    f"prompts change {name} in two ways; rows of one batch have the same edits, with arrays of the same shape."
                )
            changes[name] = (min(at, int(NEVER)), arrays)
        rows += [Row(changes)] * n
    return edits, rows


def check_plan(model: Model, asked: Asked, requests: list[Request], limit: Any, spare: int = 0) -> int:
    """How many bytes will be kept at most, of answers for each token of which `spare` are guessed beside.

    Raises RequestError for shrinks that lose the tokens, and for more than `limit`.
    """
    if (most := real(limit)) is None or not most >= 0:
        raise RequestError(f"limit is {shown(limit)}; expected a number of bytes.")
    config, B, T = model.config, model.dp, 2
    N = buckets.capacity(longest(requests), config.max_positions)  # slots, of which every token keeps what it made
    dtype = model.params["embedding"]["tokens"].dtype
    cache = init_cache(config, B, T, dtype, model.mesh)
    _, kept = jax.eval_shape(
        harvest(partial(forward, config=config), dict(asked.keep), unpadded=model.unpadded),
        model.params,
        np.zeros((B, T), np.int32),
        cache,
    )
    planned: dict[str, int] = {}
    for name, shrink in asked.keep:
        given = [0 if name == "logits" else len(request.ids) for request in requests]
        counts = [n + request.max_new_tokens * (1 + spare) for n, request in zip(given, requests, strict=True)]
        for leaf in jax.tree.leaves(kept[name]):
            if shrink is not None and leaf.shape[:2] != (B, T):
                raise RequestError(
                    f"what is kept of {name} is {list(leaf.shape)} for {B} rows of {T} tokens; expected [B T ..], these first."
                )
            keys = shrink is None and "S" in (letters(name) or ())
            token = leaf.size // (B * T) * leaf.dtype.itemsize * (N // T if keys else 1)
            planned[name] = planned.get(name, 0) + sum(counts) * token
    if sum(planned.values()) > most:
        largest = max(planned, key=lambda name: planned[name])
        raise RequestError(
            f"{sum(planned.values()):,} bytes would be kept, {planned[largest]:,} of them of {largest}, and limit is "
            f"{most:,.0f}; keep fewer names or a shrink of them, ask for fewer tokens, or give another limit."
        )
    return sum(planned.values())
