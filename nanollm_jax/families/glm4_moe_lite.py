"""GLM 4.7 Flash: the attention of DeepSeek V3, the experts of GLM 4.5.  Z.ai 2026"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import deepseek_v3, glm4_moe
from nanollm_jax.families.glm4_moe import ignored
from nanollm_jax.families.llama import PREFIXES
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. mlp_layer_types says which layers have experts; without it, all but the first."""
    layers, types = reader.count("num_hidden_layers"), reader.get("mlp_layer_types")
    types = ["dense"] + ["sparse"] * (layers - 1) if types is None else types
    if not isinstance(types, list) or len(types) < layers or not set(map(str, types)) <= {"dense", "sparse"}:
        raise reader.error("mlp_layer_types", f"a list of {layers} of 'dense' and 'sparse'")
    experts = glm4_moe.routed(
        reader, experts=64, chosen=4, size=1536, shared=1, first=1, renormalize=True, scale=1.8
    )  # fmt: skip
    experts["experts"] = [kind == "sparse" for kind in types[:layers]]
    pairs = "neighbours" if reader.flag("rope_interleave", True) else "halves"
    return deepseek_v3.read(
        reader, default_max_positions=202752, query_width=768, key=192, value=256, eps=("rms_norm_eps", 1e-5),
        rope_pairs=pairs, **experts,
    )  # fmt: skip


table = deepseek_v3.table
