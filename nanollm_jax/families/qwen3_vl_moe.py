"""Qwen 3 VL MoE, text: Qwen 3 MoE, without what sees images.  arXiv:2511.21631"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, qwen2_moe
from nanollm_jax.families.qwen2_5_vl import PREFIXES, ignored, one_position
from nanollm_jax.families.reader import Reader, text_part
from nanollm_jax.kinds import Router
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

DEFAULTS = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    return text_part(reader, "qwen3_moe", read, DEFAULTS, tied=False)


def read(reader: Reader) -> ModelConfig:
    """The text model. There are no windows, as there may be in Qwen 3 MoE, and experts' parts always sum to 1."""
    reader = reader.renamed(num_experts="num_local_experts")
    if not reader.flag("norm_topk_prob", True):
        raise reader.error("norm_topk_prob", "true, which is what the reference computes")
    width, bias = reader.count("moe_intermediate_size", 1408), reader.flag("attention_bias", False)
    if reader.count("hidden_size") in (width, 2 * width):
        raise reader.error(
            "moe_intermediate_size", "neither hidden_size nor half of it: shapes tell how experts are stored"
        )
    return llama.read(
        one_position(reader), default_max_positions=128000, default_kv_heads=16, default_theta=5e5, qk_norm="head",
        qkv_bias=bias, attention_out_bias=bias, num_experts=reader.count("num_experts", 60),
        experts_per_token=reader.count("num_experts_per_tok", 4), expert_size=width, router=Router(),
        experts=qwen2_moe.sparse(reader),
    )  # fmt: skip


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP, or of its router and experts: inputs first in published files, behind outputs in those that
    the reference writes, under the same names.
    """
    if config.layers[int(ours.split(".")[1])].router is None:
        return llama.mlp(config, ours, theirs)
    up, down = f"{theirs}.experts.gate_up_proj", f"{theirs}.experts.down_proj"
    return [
        Row(f"{ours}.router", f"{theirs}.gate.weight", "E D"),
        Row(f"{ours}.up", up, "E D (U M) -> E U M D"),
        Row(f"{ours}.up", up, "E (U M) D -> E U M D", instead=1),
        Row(f"{ours}.down", down, "E M D -> E D M"),
        Row(f"{ours}.down", down, "E D M", instead=1),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
