"""Arcee Foundation Models: LLaMA with a squared ReLU and no gate.  Arcee AI 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    bias = reader.flag("attention_bias", False)
    return llama.read(
        reader, default_max_positions=4096, eps=("rms_norm_eps", 1e-5), activation=("hidden_act", "relu2"), gated_mlp=False,
        qkv_bias=bias, attention_out_bias=bias, mlp_bias=reader.flag("mlp_bias", False),
    )  # fmt: skip


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=llama.plain_mlp)
