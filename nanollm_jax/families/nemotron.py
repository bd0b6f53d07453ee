"""Nemotron 4 and Minitron: layer norm with 1 + scale, a squared ReLU, half of each head rotated.  arXiv:2402.16819"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import arcee, llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    bias = reader.flag("attention_bias", False)
    return llama.read(
        reader, default_max_positions=4096, default_partial=0.5, eps=("norm_eps", 1e-5), norm="layer_norm", norm_offset=1.0,
        activation=("hidden_act", "relu2"), gated_mlp=False, qkv_bias=bias, attention_out_bias=bias,
        mlp_bias=reader.flag("mlp_bias", False),
    )  # fmt: skip


table = arcee.table
