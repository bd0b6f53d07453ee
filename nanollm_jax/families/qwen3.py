"""Qwen 3: LLaMA's tensors, every query and key head normalised by itself, heads of a width of their own.  arXiv:2505.09388"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.qwen2 import upper_windows
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    bias = reader.flag("attention_bias", False)
    return llama.read(
        reader, default_max_positions=32768, default_kv_heads=32, default_head_dim=128, qk_norm="head",
        qkv_bias=bias, attention_out_bias=bias, windows=upper_windows(reader),
    )  # fmt: skip
