"""OLMo 2: LLaMA with norms behind attention and MLP only, and all of a token's queries or keys normalised together.

arXiv:2501.00656
"""

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
        reader, default_max_positions=2048, eps=("rms_norm_eps", 1e-5), pre_norm=False, post_norm=True, qk_norm="width",
        qkv_bias=bias, attention_out_bias=bias,
    )  # fmt: skip


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, norms={
        "attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm",
    })  # fmt: skip
