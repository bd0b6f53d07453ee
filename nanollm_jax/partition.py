"""How a mesh divides a model, from shapes alone: which axes are split, and what becomes of sizes that do not divide.

Widths of MLPs and the vocabulary are made up with zeros. A key/value head serves G query heads. Where tp does not divide
the key/value heads there are two ways out, and arrange takes the one that stores least: more heads, of zeros, or copies of
each, of which every copy serves a share of the G, made up with zeros where that does not divide either.

    28 query heads over 4 on 8 devices: two copies of each key/value head, with 4 and with 3 of its 7 queries and one of zeros
    14 query heads over 2 on 3 devices: a third key/value head, of zeros, with 7 queries of zeros

Zeros change nothing: such a query weighs all values alike, and what it gives is multiplied by zeros.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nanollm_jax.config import ModelConfig
from nanollm_jax.kinds import Heads, LayerConfig
from nanollm_jax.layout import layout

RULE = {
    "B": "dp", "K": "tp", "N": "tp", "K'": "tp", "N'": "tp", "F": "tp", "F'": "tp", "M": "tp", "W": "tp", "V": "tp", "h": "tp",
    "B*K": ("dp", "tp"),
}  # fmt: skip


def arrange(config: ModelConfig, tp: int) -> ModelConfig:
    """The architecture as tp devices hold it: the same, but for heads and widths of MLPs that are made up until tp divides."""
    own = config.own_heads
    K, G = heads(own, tp)
    held, counted = (K * G, K), (own.num_heads, own.num_kv_heads * copies(own, G))
    return dataclasses.replace(
        config, num_heads=K * G, num_kv_heads=K, intermediate_size=up(config.intermediate_size, tp),
        expert_size=up(config.expert_size, tp) if config.num_experts else config.expert_size,
        shared_size=up(config.shared_size, tp),
        layers=tuple(divided(layer, tp) for layer in config.layers),
        counted_heads=counted if config.qk_norm == "width" and counted != held else None,
    )  # fmt: skip


def divided(layer: LayerConfig, tp: int) -> LayerConfig:
    """What one layer has of its own as tp devices hold it."""
    if layer.mixer is not None:
        return dataclasses.replace(layer, mixer=layer.mixer.divided(tp))
    if layer.mlp_size is not None:
        layer = dataclasses.replace(layer, mlp_size=up(layer.mlp_size, tp))
    if layer.heads is None:
        return layer
    K, G = heads(layer.heads, tp)
    return dataclasses.replace(layer, heads=dataclasses.replace(layer.heads, num_heads=K * G, num_kv_heads=K))


def heads(own: Heads, tp: int) -> tuple[int, int]:
    """How many key/value heads tp devices hold, and how many queries for each: what makes [K Q] smallest, Q = G + 2."""
    group = own.num_heads // own.num_kv_heads
    most = max(up(own.num_kv_heads, tp), up(own.num_heads, tp))
    ways = [(K, -(-group // (K // own.num_kv_heads))) for K in range(up(own.num_kv_heads, tp), most + 1, tp)]
    return min(ways, key=lambda way: (way[0] * (way[1] + own.vectors), way[0]))


def copies(own: Heads, group: int) -> int:
    """How many copies there are of each key/value head where each serves `group` queries."""
    return -(-own.num_heads // (own.num_kv_heads * group))


def up(size: int, tp: int) -> int:
    """The next multiple of tp."""
    return -(-size // tp) * tp


def sources(config: ModelConfig, tp: int) -> dict[str, np.ndarray]:
    """{letter: which of the model's own heads, channels or rows each stored one is, -1 for zeros} of axes that tp splits."""
    arranged = arrange(config, tp)
    stored, sizes = stored_sizes(arranged, tp), config.sizes
    found: dict[str, np.ndarray] = {
        letter: np.arange(stored[letter]) for letter in ("F", "F'", "M", "W", "V", "h") if letter in stored
    }
    found = {letter: np.where(own < sizes[letter], own, -1) for letter, own in found.items()}
    for mark, own in (("", config.own_heads), ("'", config.other_heads)):
        if own is not None:
            N, K, G = f"N{mark}", f"K{mark}", f"G{mark}"
            group, shares = stored[G], copies(own, stored[G])
            share, key = np.arange(stored[K]) % shares, np.arange(stored[K]) // shares
            query = share[:, None] * group + np.arange(group)  # of the group, [K G]
            there = (key < sizes[K])[:, None] & (query < sizes[G])
            found[K] = np.where(key < sizes[K], key, -1)
            found[N] = np.where(there, key[:, None] * sizes[G] + query, -1).reshape(stored[N])
    return found


def stored_sizes(config: ModelConfig, tp: int) -> dict[str, int]:
    """How long each axis letter is in memory: an arranged config's sizes, the vocabulary made up to a multiple of tp."""
    return config.sizes | {"V": up(config.vocab_size, tp)}


def made_up(config: ModelConfig, tp: int) -> list[str]:
    """What tp does not divide and how it is held, in words: "14 query heads over 2 key/value heads as 16 over 4"."""
    arranged = arrange(config, tp)
    said = []
    for own, held in ((config.own_heads, arranged.own_heads), (config.other_heads, arranged.other_heads)):
        if own is not None and held is not None and own != held:
            before, after = ((of.num_heads, of.num_kv_heads) for of in (own, held))
            said.append(f"{before[0]} query heads over {before[1]} key/value heads as {after[0]} over {after[1]}")
    letters = {letter for axes in layout(config).values() for letter in axes.split()}
    sizes, stored = config.sizes, stored_sizes(arranged, tp)
    names = {
        "F": "MLP width",
        "F'": "wider MLP width",
        "M": "width of experts",
        "W": "shared width",
        "V": "vocabulary",
        "h": "recurrent channels",
    }
    for letter, name in names.items():
        if letter in letters and sizes[letter] != stored[letter]:
            said.append(f"{name} {sizes[letter]} as {stored[letter]}")
    return said
