"""Command R7B and Command A: Command R with a window where it rotates, and in every fourth layer neither.  arXiv:2504.00698"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import cohere
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. The width of a head follows from the others', whatever head_dim says."""
    every = reader.count("sliding_window_pattern", 4)
    layers, window = reader.count("num_hidden_layers"), reader.optional_count("sliding_window", 4096)
    types = ["sliding_attention" if window and (layer + 1) % every else "full_attention" for layer in range(layers)]
    windows = reader.windows(window, types) or (None,) * layers
    return cohere.read(
        reader.having(head_dim=None), windows=windows, rotates=[window is not None for window in windows]
    )


table = cohere.table
