"""GLM 4.5, 4.6 and 4.7: experts in groups behind a first dense layer or more, half of each head rotated.  arXiv:2508.06471"""

from __future__ import annotations

from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, qwen2_moe
from nanollm_jax.families.llama import PREFIXES
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import Router
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    experts = routed(reader, experts=128, chosen=8, size=1408, shared=1, first=1, renormalize=True)
    return llama.read(
        reader, default_max_positions=131072, default_kv_heads=8, default_partial=0.5, eps=("rms_norm_eps", 1e-5),
        qkv_bias=reader.flag("attention_bias", False), qk_norm="head" if reader.flag("use_qk_norm", False) else None,
        **experts,
    )  # fmt: skip


def routed(
    reader: Reader,
    *,
    experts: int | None,
    chosen: int | None,
    size: int,
    shared: int | None,
    first: int,
    renormalize: bool,
    groups: int = 1,
    scale: float = 1.0,
) -> dict[str, Any]:
    """The experts of DeepSeek V3 and its relatives, in llama.read's words: a sigmoid each, chosen with a correction from the
    best groups, the first layers dense. The others are what missing keys mean.  arXiv:2412.19437, section 2.1.2
    """
    reader = reader.renamed(n_routed_experts="num_local_experts")
    width = reader.count("moe_intermediate_size", size)
    dense = reader.count("first_k_dense_replace", first, least=0)
    return {
        "num_experts": reader.count("n_routed_experts", experts),
        "experts_per_token": reader.count("num_experts_per_tok", chosen),
        "expert_size": width,
        "shared_size": width * reader.count("n_shared_experts", shared),
        "experts": [layer >= dense for layer in range(reader.count("num_hidden_layers"))],
        "router": Router(
            "sigmoid", corrected=True, groups=reader.count("n_group", groups), top_groups=reader.count("topk_group", groups),
            judged_by=2, renormalize=reader.flag("norm_topk_prob", renormalize),
            scale=reader.number("routed_scaling_factor", scale),
        ),
    }  # fmt: skip


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP, or of its router and experts."""
    return qwen2_moe.mlp(config, ours, theirs, "shared_experts")


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: layers behind the last one, which guess further tokens."""
    return (*llama.ignored(config), rf"(model\.)?layers\.({config.num_layers}|{config.num_layers + 1})\..*")


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
