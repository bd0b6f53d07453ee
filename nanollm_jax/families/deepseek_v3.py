"""DeepSeek V3, R1 and relatives: keys and values of a latent, experts by a sigmoid each.  arXiv:2412.19437"""

from __future__ import annotations

import dataclasses
from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import glm4_moe, llama
from nanollm_jax.families.glm4_moe import ignored
from nanollm_jax.families.llama import PREFIXES
from nanollm_jax.families.reader import Reader, yarn_stretch
from nanollm_jax.kinds import Latent
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    experts = glm4_moe.routed(
        reader, experts=256, chosen=8, size=2048, shared=1, first=3, renormalize=True, groups=8, scale=2.5
    )  # fmt: skip
    experts["router"] = dataclasses.replace(experts["router"], top_groups=reader.count("topk_group", 4))
    pairs = "neighbours" if reader.flag("rope_interleave", True) else "halves"
    return read(reader, default_max_positions=4096, query_width=1536, rope_pairs=pairs, **experts)


def read(reader: Reader, *, query_width: int, key: int = 128, value: int = 128, **settings: Any) -> ModelConfig:
    """What all models with latents share, in llama.read's words; query_width, key and value are what missing keys mean."""
    if reader.flag("attention_bias", False):
        raise reader.error("attention_bias", "false")
    heads = reader.count("num_attention_heads")
    if reader.count("num_key_value_heads", heads) != heads:
        raise reader.error(
            "num_key_value_heads", f"{heads}, as many as num_attention_heads: all are made of the latent"
        )
    latent = Latent(
        reader.count("kv_lora_rank", 512),
        reader.count("qk_rope_head_dim", 64),
        reader.count("qk_nope_head_dim", key),
        reader.count("v_head_dim", value),
        reader.optional_count("q_lora_rank", query_width),
    )
    if reader.count("qk_head_dim", whole := latent.key + latent.rotated) != whole:
        raise reader.error("qk_head_dim", f"{whole}, as both parts of a query are together")
    stretch = yarn_stretch(reader)  # of queries and keys alike, the rotated part and the other
    return llama.read(
        reader.having(num_key_value_heads=1, head_dim=latent.rotated + latent.width), latent=latent,
        rotary_dim=latent.rotated, attention_scale=whole**-0.5 * stretch**2, **settings,
    )  # fmt: skip


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention."""
    latent = config.latent
    assert latent is not None
    down, Z, C = f"{theirs}.kv_a_proj_with_mqa.weight", latent.rotated, latent.width
    rows = [
        Row(f"{ours}.kv_down", down, "C D", (0, Z, Z + C), (0, 0, C)),
        Row(f"{ours}.kv_down", down, "Z D", (0, 0, Z), (0, C, C + Z)),
        Row(f"{ours}.kv_norm.scale", f"{theirs}.kv_a_layernorm.weight", "C -> C"),
        Row(f"{ours}.kv_up", f"{theirs}.kv_b_proj.weight", "(N X) C -> N X C"),
        Row(f"{ours}.wo", f"{theirs}.o_proj.weight", "D (N A) -> D N A"),
    ]
    if latent.query_width is None:
        return [*rows, Row(f"{ours}.wq", f"{theirs}.q_proj.weight", "(N Y) D -> N Y D")]
    return [
        *rows,
        Row(f"{ours}.q_down", f"{theirs}.q_a_proj.weight", "J D"),
        Row(f"{ours}.q_norm.scale", f"{theirs}.q_a_layernorm.weight", "J -> J"),
        Row(f"{ours}.wq", f"{theirs}.q_b_proj.weight", "(N Y) J -> N Y J"),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, attention=attention, mlp=glm4_moe.mlp)
