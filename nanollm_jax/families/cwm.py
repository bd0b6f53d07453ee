"""Code World Model: LLaMA 3 with a window in three of four layers.  arXiv:2510.02387"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

ROPE = {"rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. A file without a word about rope means ROPE, whatever its rope_theta."""
    window = reader.optional_count("sliding_window", 8192)
    layers = range(reader.count("num_hidden_layers"))
    types = ["full_attention" if layer % 4 == 0 else "sliding_attention" for layer in layers]
    if not (reader.get("rope_scaling") or reader.get("rope_parameters")):
        reader = reader.having(rope_parameters=ROPE)
    return llama.read(
        reader, default_kv_heads=8, default_head_dim=128, default_max_positions=131072, default_theta=1e6,
        eps=("rms_norm_eps", 1e-5), mlp_bias=reader.flag("mlp_bias", False), windows=reader.windows(window, types),
    )  # fmt: skip
