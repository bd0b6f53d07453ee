"""Phi 3, 3.5 mini and 4: LLaMA with fused tensors, part of each head rotated, longrope.  arXiv:2404.14219, 2412.08905

All queries, then all keys, then all values lie in one tensor; gate and up in another.
"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import ConfigError
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.ropes import LongRopeScaling
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Older files call longrope "su" or "yarn"."""
    for key in ("rope_scaling", "rope_parameters"):
        scaling = reader.get(key)
        if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in ("su", "yarn"):
            reader = reader.having(**{key: scaling | {"rope_type": "longrope"}})
    # a field of its own in the reference, whose default stands before what the scaling says
    original = reader.count("original_max_position_embeddings", 4096)
    reader = reader.having(original_max_position_embeddings=original)
    if reader.get("embd_layer") not in (None, "default"):
        raise reader.error("embd_layer", "nothing or 'default'")
    window = reader.optional_count("sliding_window")
    config = llama.read(
        reader, default_max_positions=4096, eps=("rms_norm_eps", 1e-5), default_partial=1.0, window=window,
    )  # fmt: skip
    pairs = (config.rotary_dim or config.head_dim) // 2
    if (rope := config.layers[0].rope) is not None and isinstance(scaling := rope.scaling, LongRopeScaling):
        found = (len(scaling.short_factors), len(scaling.long_factors))
        if found != (pairs, pairs):
            raise ConfigError(f"longrope has {found[0]} short and {found[1]} long factors; expected {pairs} of each.")
    return config


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention."""
    size = config.sizes
    G, H = size["G"], size["H"]
    N, K = size["N"] * H, size["K"] * H  # rows of the fused tensor
    fused = f"{theirs}.qkv_proj.weight"
    return [
        Row(f"{ours}.wqkv", fused, "(K G H) D -> K G H D", (1, 0, G), (0, 0, N)),
        Row(f"{ours}.wqkv", fused, "(K H) D -> K 1 H D", (1, G, G + 1), (0, N, N + K)),
        Row(f"{ours}.wqkv", fused, "(K H) D -> K 1 H D", (1, G + 1, G + 2), (0, N + K, N + 2 * K)),
        Row(f"{ours}.wo", f"{theirs}.o_proj.weight", "D (N H) -> D N H"),
    ]


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP."""
    return [
        Row(f"{ours}.up", f"{theirs}.gate_up_proj.weight", "(U F) D -> U F D"),
        Row(f"{ours}.down", f"{theirs}.down_proj.weight", "D F"),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor, or per part of one."""
    return llama.table(config, attention=attention, mlp=mlp)
