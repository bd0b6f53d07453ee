"""ERNIE 4.5 0.3B: LLaMA whose heads are rotated in pairs of neighbours.  Baidu ERNIE team 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    bias = reader.flag("use_bias", False)
    return llama.read(
        reader, default_max_positions=131072, default_kv_heads=2, default_head_dim=128, default_theta=5e5,
        default_tied=True, eps=("rms_norm_eps", 1e-5), qkv_bias=bias, attention_out_bias=bias, mlp_bias=bias,
        rope_pairs="neighbours",
    )  # fmt: skip
