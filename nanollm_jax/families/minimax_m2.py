"""MiniMax M2: experts by a sigmoid each, all of a token's queries or keys normalised together.  MiniMax 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, mixtral
from nanollm_jax.families.llama import PREFIXES
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import Router
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. rotary_dim says how much of a head is rotated, where partial_rotary_factor does not."""
    reader = reader.renamed(num_local_experts="num_experts")
    H, rotated = reader.count("head_dim", 128), reader.optional_count("rotary_dim")
    if rotated is not None and reader.get("partial_rotary_factor") is None:
        reader = reader.having(partial_rotary_factor=rotated / H)
    return llama.read(
        reader, default_max_positions=196608, default_kv_heads=8, default_head_dim=128, default_theta=5e6,
        default_partial=1.0, qk_norm="width", num_experts=reader.count("num_local_experts", 256),
        experts_per_token=reader.count("num_experts_per_tok", 8), expert_size=reader.count("intermediate_size"),
        router=Router("sigmoid", corrected=True),
    )  # fmt: skip


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's router and experts."""
    names = f"{theirs.replace('.mlp', '.block_sparse_moe')}", ours
    return mixtral.mlp(config, ours, theirs) + [
        Row(f"{ours}.correction", f"{name}.e_score_correction_bias", "E -> E", instead=way)
        for way, name in enumerate(names)
    ]


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: those that guess further tokens."""
    return (*llama.ignored(config), r"(model\.)?mtp\..*")


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
