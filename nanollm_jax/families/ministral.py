"""Ministral 8B: Mistral with a window in some of its layers.  Mistral AI 2024"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Without layer_types the window is in every layer."""
    window = reader.optional_count("sliding_window", 4096)
    types = ["full_attention" if window is None else "sliding_attention"] * reader.count("num_hidden_layers")
    return llama.read(
        reader, default_kv_heads=8, default_max_positions=4096 * 32, windows=reader.windows(window, types)
    )
