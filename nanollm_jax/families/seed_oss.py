"""Seed-OSS: LLaMA with heads of a width of their own, and biases on queries, keys and values.  ByteDance Seed team 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    return llama.read(
        reader, default_max_positions=524288, default_kv_heads=8, default_head_dim=128,
        qkv_bias=reader.flag("attention_bias", True), attention_out_bias=reader.flag("attention_out_bias", False),
        mlp_bias=reader.flag("mlp_bias", False),
    )  # fmt: skip
