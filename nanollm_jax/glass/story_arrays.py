"""The arrays of a story, each bounded: what does not fit is left out, and said.

The places where heads looked are shrunk on the device while the model writes; the rest is made of the vectors that were kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax.config import ModelConfig
from nanollm_jax.glass import attribution, passes
from nanollm_jax.glass.asking import expanded, model_names
from nanollm_jax.glass.lens import Lens, score
from nanollm_jax.glass.texts import own_config
from nanollm_jax.loading import Model
from nanollm_jax.params import Params

PLACES = 8  # of each head and token
BEST = 5  # tokens that are named for each depth
LIMITS = {"heads": 1_000_000, "rows": 800_000, "shares": 400_000, "lens": 400_000}  # bytes of each part
AWAY = 65535  # a place that is not shown
Arrays = dict[str, tuple[str, np.ndarray]]  # {name: (axis letters, numbers)}


def strongest(value: jax.Array, seen: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """A shrink: the PLACES largest weights of each head, and their positions.  [B K G T S] -> [B T N X] twice"""
    B, K, G, T, S = value.shape
    slots = next(seen[name] for name in reversed(list(seen)) if name.endswith(".attention.slots"))[:, None, None]
    weights = jnp.moveaxis(value, 3, 1).reshape(B, T, K * G, S).astype(jnp.float32)
    weights = jnp.where(slots >= 0, weights, 0)
    more = ((0, 0), (0, 0), (0, 0), (0, max(PLACES - S, 0)))
    weights = jnp.pad(weights, more)
    slots = jnp.pad(jnp.broadcast_to(slots, (B, 1, 1, S)), more, constant_values=-1)
    found, at = jax.lax.top_k(weights, PLACES)
    return found, jnp.take_along_axis(jnp.broadcast_to(slots, weights.shape), at, axis=-1)


def lens_of(model: Model, depths: list[str], values: dict[str, Any], ids: list[int], k: int) -> Lens:
    """glass.lens over values that are at hand."""
    P, W = len(depths), len(ids) - 1
    after = np.tile(np.array(ids[1:], np.int32), P)
    normed = np.repeat([name == "final_norm" for name in depths], W)
    vectors = np.concatenate([values[name] for name in depths])
    call = lambda *arrays: passes.run(score, model, *arrays, k=k)  # noqa: E731
    best, logprobs, own, ranks = passes.in_rows(call, (vectors, after, normed), passes.TOKENS // 256, model.dp)
    pair = lambda x: x.reshape(P, W)  # noqa: E731
    return Lens(depths, [], [], best.reshape(P, W, k), logprobs.reshape(P, W, k), pair(own), pair(ranks))


def heads_of(model: Model, values: dict[str, Any], first: int, left: list[str], layer: int | None) -> Arrays:
    """heads and rows of a story. What does not fit is left out, and said in `left`."""
    found = []
    for index in range(model.config.num_layers):
        value = values[f"layers.{index}.attention.weights"]
        if not isinstance(value, tuple):
            rows = value.reshape(len(value), -1, value.shape[-1]).astype(np.float32)  # [W N tokens]
            rows = np.pad(rows, ((0, 0), (0, 0), (0, max(PLACES - rows.shape[-1], 0))))
            at = np.argsort(-rows, axis=-1, kind="stable")[..., :PLACES]
            value = np.take_along_axis(rows, at, axis=-1), at
        found.append(value)
    W, N, X = found[0][0].shape
    places = min(X, LIMITS["heads"] // max(1, 3 * W * N * len(found)))
    layers = thinned(len(found), LIMITS["heads"] // max(1, 3 * W * N)) if not places else list(range(len(found)))
    if not places:
        left.append(f"Heads are shown of {len(layers)} of {len(found)} layers.")
    if places < X:
        left.append(f"Of each head the {max(places, 1)} strongest places are kept, and not {X}.")
    places = max(places, 1)
    weights = np.stack([np.moveaxis(found[index][0], 1, 0)[..., :places] for index in layers])  # [L N W X]
    at = np.stack([np.moveaxis(found[index][1], 1, 0)[..., :places] for index in layers]) - first
    at = np.where((at < 0) | (at >= W) | (weights <= 0), AWAY, at).astype(np.uint16)
    arrays: Arrays = {"heads.layers": ("L", np.array(layers, np.uint16)), "heads.places": ("L N W X", at)}
    arrays["heads.weights"] = ("L N W X", in_255ths(weights))
    if layer is not None:
        rows = np.moveaxis(values[f"layers.{layer}.attention.weights"].reshape(W, N, -1), 1, 0)[..., first:]
        last = max(1, min(W, math.isqrt(2 * LIMITS["rows"] // N) - 1))
        if last < W:
            left.append(f"Whole rows of attention are kept for the last {last} places.")
        arrays["rows"] = ("N X", in_255ths(rows[:, -last:, -last:][:, *np.tril_indices(last)]))
    return arrays


def in_255ths(weights: np.ndarray) -> np.ndarray:
    """Weights from 0 to 1 as bytes."""
    return np.rint(255 * np.clip(weights.astype(np.float32), 0, 1)).astype(np.uint8)


def shares_of(
    model: Model,
    values: dict[str, Any],
    ids: list[int],
    found: Lens,
    number: Callable[[np.ndarray], np.ndarray],
    left: list[str],
) -> Arrays:
    """shares of a story: of each token against the best other one."""
    config = own_config(model)
    own = np.array(ids[1:], np.int32)
    other = np.where(found.ids[-1, :, 0] == own, found.ids[-1, :, min(1, found.ids.shape[-1] - 1)], found.ids[-1, :, 0])
    names = [*expanded(model_names(model), dict.fromkeys(attribution.summed(config))), "final_norm"]
    names = list(dict.fromkeys(names))
    arrays = (own, other.astype(np.int32), *(values[name] for name in names))
    call = lambda *rows: passes.run(split, model, *rows, names=tuple(names))  # noqa: E731
    heads, mlps, embedding, bias, rest = passes.in_rows(call, arrays, passes.TOKENS // 64, model.dp)
    if 2 * heads.size > LIMITS["shares"]:
        left.append("What each layer's heads wrote is told of all of them together.")
        heads = heads.sum(axis=-1, keepdims=True)
    small = lambda x: x.astype(np.float16)  # noqa: E731
    return {
        "shares.heads": ("W L N", small(heads)), "shares.mlps": ("W L", small(mlps)),
        "shares.embedding": ("W", small(embedding)), "shares.bias": ("W", small(bias)), "shares.rest": ("W", small(rest)),
        "shares.against": ("W", number(other)),
    }  # fmt: skip


def split(
    params: Params,
    own: jax.Array,
    other: jax.Array,
    *values: jax.Array,
    config: ModelConfig,
    mesh: Mesh | None,
    names: tuple[str, ...],
) -> tuple[jax.Array, ...]:
    """How far the logits of own are above those of other [R], by who wrote that, before any cap; values are [R ..] by name."""

    def one(own: jax.Array, other: jax.Array, *values: jax.Array) -> tuple[jax.Array, ...]:
        named = dict(zip(names, values, strict=True))
        direction, constant = attribution.direction_of(params, jnp.stack([own, other]), jnp.array([1.0, -1.0]), config)
        heads, mlps, stream, bias = attribution.summands(params, named, direction, config, mesh)
        parts = heads, mlps, stream, bias + constant
        said = jnp.sum(direction * named["final_norm"].astype(jnp.float32)) + constant
        return *parts, said - sum(jnp.sum(part) for part in parts)

    return jax.vmap(one)(own, other, *values)


def thinned(count: int, room: int) -> list[int]:
    """At most `room` of so many, evenly apart, the last one among them."""
    room = max(1, min(count, room))
    return sorted({count - 1 - round(index * count / room) for index in range(room)} & set(range(count)))


def numbers(ids: np.ndarray, words: dict[int, int]) -> np.ndarray:
    """Ids as numbers in a list of words, which grows."""
    found = np.array([words.setdefault(int(token), len(words)) for token in ids.flat]).reshape(ids.shape)
    return found.astype(np.uint16 if len(words) <= 2**16 else np.uint32)
