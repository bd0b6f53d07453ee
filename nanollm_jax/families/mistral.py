"""Mistral 7B, Nemo and relatives: LLaMA's tensors, with a sliding window or none and other defaults.  arXiv:2310.06825"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. A missing sliding_window is 4096, as in the reference; null is none."""
    window = reader.optional_count("sliding_window", 4096)
    return llama.read(reader, default_kv_heads=8, default_max_positions=4096 * 32, window=window)
