"""Granite 3 of experts, PowerMoE: Granite's multipliers, all experts of a layer in one tensor.  arXiv:2408.13359"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import granite, llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    return granite.read(
        reader, num_experts=reader.count("num_local_experts", 8), expert_size=reader.count("intermediate_size"),
        experts_per_token=reader.count("num_experts_per_tok", 2),
    )  # fmt: skip


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's router and experts, under their published names or those of transformers 5."""
    theirs = theirs.replace(".mlp", ".block_sparse_moe")
    return [
        Row(f"{ours}.router", f"{theirs}.router.layer.weight", "E D -> E D"),
        Row(f"{ours}.up", f"{theirs}.input_linear.weight", "E (U M) D -> E U M D"),
        Row(f"{ours}.down", f"{theirs}.output_linear.weight", "E D M"),
        Row(f"{ours}.router", f"{theirs}.router.weight", "E D -> E D", instead=1),
        Row(f"{ours}.up", f"{theirs}.experts.gate_up_proj", "E (U M) D -> E U M D", instead=1),
        Row(f"{ours}.down", f"{theirs}.experts.down_proj", "E D M", instead=1),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
