"""Hunyuan dense, 0.5B to 7B: LLaMA whose query and key heads are normalised when they have been rotated.  Tencent 2025"""

from __future__ import annotations

from dataclasses import replace

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

# what a stretched base says already, or what is said beside it and read by nobody
UNUSED = ("type", "alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Of a "dynamic" rope with an alpha, the base is stretched once, whatever the length."""
    bias = reader.flag("attention_bias", False)
    return llama.read(
        with_alpha(reader), default_max_positions=2048, eps=("rms_norm_eps", 1e-5), qk_norm="head", norm_behind_rope=True,
        qkv_bias=bias, attention_out_bias=bias,
    )  # fmt: skip


def with_alpha(reader: Reader) -> Reader:
    """The same file with alpha in the base of its rope: theta * alpha ** (H / (H - 2))."""
    key = "rope_parameters" if reader.get("rope_parameters") else "rope_scaling"
    rope = reader.get(key)
    if not isinstance(rope, dict) or not rope.get("alpha") or rope.get("rope_type", rope.get("type")) != "dynamic":
        return reader
    inner = reader.inside(rope, key, "rope")
    H = reader.count("head_dim", reader.count("hidden_size") // reader.count("num_attention_heads"))
    if H < 4:
        raise reader.error("head_dim", "4 or more, so that alpha can stretch the base of its rope")
    theta = inner.number("rope_theta", reader.number("rope_theta", 10000.0))
    theta *= inner.number("alpha", 1.0) ** (H / (H - 2))
    left = {name: value for name, value in rope.items() if name not in UNUSED and not name.startswith("rope_t")}
    return reader.having(**{key: left | {"rope_type": "default", "rope_theta": theta}})


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention."""
    renamed = {f"{theirs}.q_norm.weight": "query_layernorm", f"{theirs}.k_norm.weight": "key_layernorm"}
    return [
        replace(row, name=f"{theirs}.{renamed[row.name]}.weight") if row.name in renamed else row
        for row in llama.attention(config, ours, theirs)
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, attention=attention)
