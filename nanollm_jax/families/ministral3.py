"""Ministral 3: Mistral whose queries grow with their positions, behind the length that it was trained on.  Mistral AI 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader, need
from nanollm_jax.kinds import Sharpening

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

# what a file without a word about rope means
ROPE = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    key = "rope_scaling" if reader.get("rope_scaling") else "rope_parameters"
    rope = reader.get(key) or ROPE
    if not isinstance(rope, dict):
        raise reader.error(key, "an object")
    inner = reader.inside(rope, key, "rope")
    beta, every = need(inner, "llama_4_scaling_beta"), inner.count("original_max_position_embeddings")
    left = {
        name: value for name, value in rope.items() if name not in ("llama_4_scaling_beta", "max_position_embeddings")
    }
    return llama.read(
        reader.having(**{key: left}), default_kv_heads=8, default_head_dim=128, default_max_positions=262144,
        eps=("rms_norm_eps", 1e-5), window=reader.optional_count("sliding_window"), sharpening=Sharpening(beta, every),
    )  # fmt: skip
