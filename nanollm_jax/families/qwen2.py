"""Qwen 2 and 2.5: LLaMA's tensors with biases on queries, keys and values, and a window in the upper layers if it says so.

arXiv:2407.10671
"""

from __future__ import annotations

from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    return llama.read(
        reader, default_max_positions=32768, default_kv_heads=32, qkv_bias=True, windows=upper_windows(reader)
    )


def upper_windows(reader: Reader) -> tuple[Any, ...]:
    """One window per layer, from max_window_layers on, and only where use_sliding_window is true."""
    used, first = reader.flag("use_sliding_window", False), reader.count("max_window_layers", 28, least=0)
    window = reader.optional_count("sliding_window", 4096)
    window = window if used else None
    layers = reader.count("num_hidden_layers")
    return reader.windows(window, [
        "sliding_attention" if window and layer >= first else "full_attention" for layer in range(layers)
    ])  # fmt: skip
