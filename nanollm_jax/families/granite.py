"""Granite 3: LLaMA with four multipliers, of the embedding, the scores, what a layer adds, and the logits.

IBM Granite team 2024, "Granite 3.0 Language Models"; the multipliers are those of arXiv:2203.03466.
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
    return read(reader, mlp_bias=reader.flag("mlp_bias", False))


def read(reader: Reader, **features: Any) -> ModelConfig:
    """What all Granites share, in llama.read's words."""
    bias = reader.flag("attention_bias", False)
    return llama.read(
        reader, default_max_positions=2048, qkv_bias=bias, attention_out_bias=bias,
        attention_scale=reader.number("attention_multiplier", 1.0),
        embedding_scale=reader.number("embedding_multiplier", 1.0),
        residual_scale=reader.number("residual_multiplier", 1.0),
        logit_scale=1.0 / reader.number("logits_scaling", 1.0), **features,
    )  # fmt: skip
