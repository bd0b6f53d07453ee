"""How a mesh divides a model, from shapes alone: which axes are split, and what becomes of sizes that do not divide."""

from __future__ import annotations

import dataclasses
import math

from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import ConfigError
from nanollm_jax.layout import layout

RULE = {"B": "dp", "K": "tp", "N": "tp", "F": "tp", "M": "tp", "V": "tp"}


def arrange(config: ModelConfig, tp: int) -> ModelConfig:
    """The architecture as tp devices hold it: the same, but for key/value heads that are repeated until they divide.

    Raises ConfigError where query heads or MLP width cannot be split, naming every tp that can.
    """
    if not splits(config, tp):
        able = [size for size in range(1, config.num_heads + 1) if splits(config, size)]
        raise ConfigError(
            f"tp={tp} does not divide this model: {config.num_heads} query heads over {config.num_kv_heads} key/value "
            f"heads, MLP width {' and '.join(map(str, widths(config)))}; tp may be {', '.join(map(str, able))}."
        )
    return dataclasses.replace(config, num_kv_heads=math.lcm(config.num_kv_heads, tp))


def splits(config: ModelConfig, tp: int) -> bool:
    """Can tp devices share this model?"""
    return config.num_heads % math.lcm(config.num_kv_heads, tp) == 0 and not any(size % tp for size in widths(config))


def widths(config: ModelConfig) -> list[int]:
    """The widths of the MLPs of a model, experts' included."""
    letters = {letter for axes in layout(config).values() for letter in axes.split()}
    return [config.sizes[letter] for letter in ("F", "M") if letter in letters]


def stored_sizes(config: ModelConfig, tp: int) -> dict[str, int]:
    """How long each axis letter is in memory: an arranged config's sizes, the vocabulary rounded up to a multiple of tp."""
    return config.sizes | {"V": -(-config.vocab_size // tp) * tp}
