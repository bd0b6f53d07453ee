"""OLMoE: LLaMA with many small experts, and all of a token's queries or keys normalised together.  arXiv:2409.02060"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, mixtral
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import Router
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    reader = reader.renamed(num_experts="num_local_experts")
    bias = reader.flag("attention_bias", False)
    return llama.read(
        reader, default_max_positions=4096, eps=("rms_norm_eps", 1e-5), qk_norm="width", qkv_bias=bias,
        attention_out_bias=bias, qkv_clip=reader.optional("clip_qkv"), expert_size=reader.count("intermediate_size"),
        num_experts=reader.count("num_experts", 64), experts_per_token=reader.count("num_experts_per_tok", 8),
        router=Router(renormalize=reader.flag("norm_topk_prob", False)),
    )  # fmt: skip


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's router and experts."""
    return mixtral.experts(config, ours, theirs, ("gate_proj", "up_proj", "down_proj"))


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
