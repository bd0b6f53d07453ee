"""Gemma 1: LLaMA with 1 + scale in every norm, the embedding stretched by sqrt(D), a gated GELU.  arXiv:2403.08295"""

from __future__ import annotations

from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. The first files say "gelu" and mean its tanh form."""
    act = reader.get("hidden_activation") or reader.get("hidden_act")
    act = "gelu_pytorch_tanh" if act == "gelu" else act
    return read(reader.having(hidden_activation=act), default_max_positions=8192, default_kv_heads=16)


def read(reader: Reader, **settings: Any) -> ModelConfig:
    """What all Gemmas share, in llama.read's words."""
    bias = reader.flag("attention_bias", False)
    if reader.flag("use_bidirectional_attention", False):
        raise reader.error("use_bidirectional_attention", "false: this is a decoder")
    return llama.read(
        reader, default_head_dim=256, default_tied=True, activation=("hidden_activation", "gelu_pytorch_tanh"),
        norm_offset=1.0, embedding_scale=reader.count("hidden_size") ** 0.5, qkv_bias=bias, attention_out_bias=bias,
        **settings,
    )  # fmt: skip
