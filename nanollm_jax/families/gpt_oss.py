"""gpt-oss: a sink beside the keys of each head, windows in every other layer, experts with biases and a clamped swish.

arXiv:2508.10925
"""

from __future__ import annotations

import dataclasses

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

# what a file without a word about rope means
ROPE = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    for key, known in (("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)):
        if reader.number(key, known) != known:
            raise reader.error(key, f"{known}, as every gpt-oss has it")
    reader = reader.renamed(num_local_experts="num_experts")
    if not (reader.get("rope_scaling") or reader.get("rope_parameters")):
        reader = reader.having(rope_parameters=ROPE)
    bias, window = reader.flag("attention_bias", True), reader.optional_count("sliding_window", 128)
    layers = range(reader.count("num_hidden_layers"))
    types = ["sliding_attention" if window and layer % 2 == 0 else "full_attention" for layer in layers]
    config = llama.read(
        reader.having(hidden_act="silu"), default_max_positions=131072, default_kv_heads=8, default_head_dim=64,
        default_theta=150000.0, eps=("rms_norm_eps", 1e-5), qkv_bias=bias, attention_out_bias=bias, attention_sinks=True,
        windows=reader.windows(window, types), num_experts=reader.count("num_local_experts", 128),
        experts_per_token=reader.count("num_experts_per_tok", 4), expert_size=reader.count("intermediate_size"),
        expert_bias=True,
    )  # fmt: skip
    return dataclasses.replace(config, activation="clamped_swish")  # hidden_act is not read


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention."""
    return [*llama.attention(config, ours, theirs), Row(f"{ours}.sinks", f"{theirs}.sinks", "N -> N")]


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's router and experts, whose gate and up alternate."""
    return [
        Row(f"{ours}.router", f"{theirs}.router.weight", "E D -> E D"),
        Row(f"{ours}.router_bias", f"{theirs}.router.bias", "E -> E"),
        Row(f"{ours}.up", f"{theirs}.experts.gate_up_proj", "E D (M U) -> E U M D"),
        Row(f"{ours}.up_bias", f"{theirs}.experts.gate_up_proj_bias", "E (M U) -> E U M"),
        Row(f"{ours}.down", f"{theirs}.experts.down_proj", "E M D -> E D M"),
        Row(f"{ours}.down_bias", f"{theirs}.experts.down_proj_bias", "E D -> E D"),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, attention=attention, mlp=mlp)
