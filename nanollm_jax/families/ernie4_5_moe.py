"""ERNIE 4.5 21B-A3B and larger: ERNIE with experts, chosen with a correction of their chances.  Baidu ERNIE team 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, qwen2_moe
from nanollm_jax.families.llama import PREFIXES
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import Router
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Layers from one index to another have experts, or every n-th of them."""
    reader = reader.renamed(moe_num_experts="num_experts", moe_k="num_experts_per_tok")
    layers, step = reader.count("num_hidden_layers"), reader.count("moe_layer_interval", 1)
    begin = reader.count("moe_layer_start_index", 1, least=0)
    end = (
        layers - 1
        if reader.get("moe_layer_end_index", -1) in (-1, None)
        else reader.count("moe_layer_end_index", least=0)
    )
    width = reader.count("moe_intermediate_size", 1536)
    bias = reader.flag("use_bias", False)
    return llama.read(
        reader, default_max_positions=131072, default_kv_heads=4, default_theta=5e5, default_tied=True,
        eps=("rms_norm_eps", 1e-5), qkv_bias=bias, attention_out_bias=bias, mlp_bias=bias, head_bias=bias,
        rope_pairs="neighbours", num_experts=reader.count("moe_num_experts", 64),
        experts_per_token=reader.count("moe_k", 6), expert_size=width,
        shared_size=width * reader.count("moe_num_shared_experts", 2, least=0),
        experts=[(layer + 1) % step == 0 and begin <= layer <= end for layer in range(layers)],
        router=Router(corrected=True, least=reader.number("moe_norm_min", 1e-12)),
    )  # fmt: skip


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP, or of its router and experts; the correction has two names."""
    rows = qwen2_moe.mlp(config, ours, theirs, "shared_experts")
    path, tensor = f"{ours}.correction", "moe_statics.e_score_correction_bias"
    kept = [row for row in rows if row.path != path]
    return kept + [
        Row(path, f"{theirs}{inside}.{tensor}", "1 E -> E", instead=way)
        for way, inside in enumerate(("", ".gate"))
        if len(kept) < len(rows)
    ]


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: those that guess further tokens."""
    return (*llama.ignored(config), r"(model\.)?mtp_.*")


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
