"""GLM 4 (glm-4-9b-hf) and GLM Edge: LLaMA with half of each head rotated, in pairs of neighbours.  arXiv:2406.12793"""

from __future__ import annotations

from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, phi3
from nanollm_jax.families.llama import NORMS, PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader, **features: Any) -> ModelConfig:
    """config.json -> ModelConfig."""
    return llama.read(
        reader, default_max_positions=131072, default_kv_heads=2, default_head_dim=128, default_partial=0.5,
        eps=("rms_norm_eps", 1.5625e-07), qkv_bias=reader.flag("attention_bias", True), rope_pairs="neighbours",
        **features,
    )  # fmt: skip


def table(config: ModelConfig, norms: dict[str, str] = NORMS) -> list[Row]:
    """One row per tensor; gate and up share one."""
    return llama.table(config, norms=norms, mlp=phi3.mlp)
