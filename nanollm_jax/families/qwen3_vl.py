"""Qwen 3 VL, text: Qwen 3, without what sees images.  arXiv:2511.21631"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import table
from nanollm_jax.families.qwen2_5_vl import PREFIXES, ignored, one_position
from nanollm_jax.families.reader import Reader, text_part

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

DEFAULTS = {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    return text_part(reader, "qwen3", read, DEFAULTS, tied=False)


def read(reader: Reader) -> ModelConfig:
    """The text model. There are no windows, as there may be in Qwen 3."""
    bias = reader.flag("attention_bias", False)
    return llama.read(
        one_position(reader), default_max_positions=128000, default_kv_heads=32, default_head_dim=128,
        default_theta=5e5, qk_norm="head", qkv_bias=bias, attention_out_bias=bias,
    )  # fmt: skip
