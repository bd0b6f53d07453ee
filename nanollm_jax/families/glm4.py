"""GLM 4 of April 2025 (GLM-4-0414, GLM-Z1): GLM with norms behind attention and MLP as well."""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import glm
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    return glm.from_hf(reader, post_norm=True)


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor. post_attention_layernorm is the norm before the MLP, as in LLaMA."""
    return glm.table(config, norms={
        "attention_norm": "input_layernorm", "attention_post_norm": "post_self_attn_layernorm",
        "mlp_norm": "post_attention_layernorm", "mlp_post_norm": "post_mlp_layernorm",
    })  # fmt: skip
