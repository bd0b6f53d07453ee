"""Qwen 1.5 MoE and Qwen 2 57B-A14B: Qwen 2 with experts, beside one that all tokens share.  arXiv:2407.10671"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, olmoe
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import Router
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. The window, where used, is in every other layer below max_window_layers."""
    used, below = reader.flag("use_sliding_window", False), reader.count("max_window_layers", 28, least=0)
    window = reader.optional_count("sliding_window", 4096) if used or reader.get("sliding_window") != 0 else None
    window = window if used else None
    types = [
        "sliding_attention" if window and layer % 2 == 0 and layer < below else "full_attention"
        for layer in range(reader.count("num_hidden_layers"))
    ]
    return llama.read(
        reader, default_max_positions=32768, default_kv_heads=16, qkv_bias=reader.flag("qkv_bias", True),
        windows=reader.windows(window, types), num_experts=reader.count("num_experts", 60),
        experts_per_token=reader.count("num_experts_per_tok", 4), expert_size=reader.count("moe_intermediate_size", 1408),
        shared_size=reader.count("shared_expert_intermediate_size", 5632), shared_gate=True, experts=sparse(reader),
        router=Router(renormalize=reader.flag("norm_topk_prob", False)),
    )  # fmt: skip


def sparse(reader: Reader) -> list[bool]:
    """Which layers have experts: every decoder_sparse_step-th that is not in mlp_only_layers."""
    layers, step = reader.count("num_hidden_layers"), reader.count("decoder_sparse_step", 1)
    named = reader.get("mlp_only_layers") or []
    if not isinstance(named, list) or any(not isinstance(layer, int) for layer in named):
        raise reader.error("mlp_only_layers", "a list of layers")
    return [layer not in named and (layer + 1) % step == 0 for layer in range(layers)]


def mlp(config: ModelConfig, ours: str, theirs: str, shared: str = "shared_expert") -> list[Row]:
    """The rows of one layer's MLP, or of its router, its experts and the one that all tokens share."""
    router = config.layers[int(ours.split(".")[1])].router
    if router is None:
        return llama.mlp(config, ours, theirs)
    rows = olmoe.mlp(config, ours, theirs)
    if router.corrected:
        rows.append(Row(f"{ours}.correction", f"{theirs}.gate.e_score_correction_bias", "E -> E"))
    if config.shared_size:
        rows += llama.mlp(config, f"{ours}.shared", f"{theirs}.{shared}", "W")
    if config.shared_gate:
        rows.append(Row(f"{ours}.shared.gate", f"{theirs}.{shared}_gate.weight", "1 D -> D"))
    return rows


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
