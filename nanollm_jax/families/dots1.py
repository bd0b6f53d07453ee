"""dots.llm1: Qwen 3's attention, and the experts of DeepSeek V3.  arXiv:2506.05767"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import glm4_moe, llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Layers from max_window_layers on have the window."""
    first, window = reader.count("max_window_layers", 62, least=0), reader.optional_count("sliding_window", 4096)
    types = [
        "sliding_attention" if window and layer >= first else "full_attention"
        for layer in range(reader.count("num_hidden_layers"))
    ]
    bias = reader.flag("attention_bias", False)
    experts = glm4_moe.routed(
        reader, experts=None, chosen=None, size=1408, shared=None, first=0, renormalize=False
    )  # fmt: skip
    return llama.read(
        reader, default_max_positions=2048, default_kv_heads=32, qk_norm="head", qkv_bias=bias, attention_out_bias=bias,
        windows=reader.windows(window, types), **experts,
    )  # fmt: skip


table = glm4_moe.table
