"""Command R and Aya 23: attention and MLP side by side behind one norm, pairs of neighbours rotated.  Cohere 2024"""

from __future__ import annotations

from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Command R+, whose heads have a layer norm each, is refused."""
    if reader.flag("use_qk_norm", False):
        raise reader.error("use_qk_norm", "false")
    return read(reader, default_theta=5e5)


def read(reader: Reader, **settings: Any) -> ModelConfig:
    """What both generations share, in llama.read's words."""
    bias = reader.flag("attention_bias", False)
    return llama.read(
        reader, default_max_positions=8192, default_tied=True, eps=("layer_norm_eps", 1e-5), norm="centred_norm",
        parallel_residual=True, shared_norm=True, rope_pairs="neighbours", qkv_bias=bias, attention_out_bias=bias,
        logit_scale=reader.number("logit_scale", 0.0625), **settings,
    )  # fmt: skip


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, norms={"attention_norm": "input_layernorm"})
