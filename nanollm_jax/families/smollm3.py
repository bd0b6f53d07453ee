"""SmolLM 3: LLaMA with no rope in every fourth layer.  Yang et al. 2025, arXiv:2501.18795, section 3 (RNoPE)."""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. no_rope_layers has a 1 for every layer that rotates, against its name."""
    layers, interval = reader.count("num_hidden_layers"), reader.count("no_rope_layer_interval", 4)
    rotates = reader.get("no_rope_layers")
    if rotates is None:
        rotates = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(rotates, list) or len(rotates) < layers or any(value not in (0, 1) for value in rotates):
        raise reader.error("no_rope_layers", f"a list of {layers} of 0 and 1")
    window = reader.optional_count("sliding_window")
    window = window if reader.flag("use_sliding_window", False) else None
    types = ["sliding_attention" if window and not rotates[layer] else "full_attention" for layer in range(layers)]
    bias = reader.flag("attention_bias", False)
    return llama.read(
        reader, default_max_positions=32768, default_kv_heads=4, default_theta=2e6, default_tied=True, qkv_bias=bias,
        attention_out_bias=bias, mlp_bias=reader.flag("mlp_bias", False), windows=reader.windows(window, types),
        rotates=[bool(value) for value in rotates],
    )  # fmt: skip
