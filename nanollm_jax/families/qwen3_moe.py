"""Qwen 3 MoE: Qwen 3's attention, and many small experts in the layers that have no MLP of their own.  arXiv:2505.09388"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, qwen2_moe
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import Router
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. The window, where used, is in every layer; max_window_layers changes nothing."""
    reader = reader.renamed(num_experts="num_local_experts")
    window = reader.optional_count("sliding_window", 4096)
    bias = reader.flag("attention_bias", False)
    return llama.read(
        reader, default_max_positions=32768, default_kv_heads=4, qk_norm="head",
        qkv_bias=bias, attention_out_bias=bias, window=window if reader.flag("use_sliding_window", False) else None,
        num_experts=reader.count("num_experts", 128),
        experts_per_token=reader.count("num_experts_per_tok", 8),
        expert_size=reader.count("moe_intermediate_size", 768),
        router=Router(renormalize=reader.flag("norm_topk_prob", False)),
        experts=qwen2_moe.sparse(reader),
    )  # fmt: skip


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=qwen2_moe.mlp)
