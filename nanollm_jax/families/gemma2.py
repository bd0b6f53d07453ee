"""Gemma 2: norms behind attention and MLP as well, soft caps, a window in every other layer.  arXiv:2408.00118"""

from __future__ import annotations

from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import gemma, llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]
NORMS = {
    "attention_norm": "input_layernorm", "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm", "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Without layer_types, layers 0, 2, 4 ... have the window."""
    return read(
        reader, every=2, default_max_positions=8192, attention_softcap=reader.optional("attn_logit_softcapping", 50.0),
        logit_softcap=reader.optional("final_logit_softcapping", 30.0),
    )  # fmt: skip


def read(reader: Reader, every: int, **settings: Any) -> ModelConfig:
    """What Gemma 2 and 3 share: of `every` layers the last one sees everything, the others a window."""
    layers = reader.count("num_hidden_layers")
    types = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    window = reader.optional_count("sliding_window", 4096)
    scale = reader.number("query_pre_attn_scalar", 256.0) ** -0.5
    return gemma.read(
        reader, default_kv_heads=4, post_norm=True, windows=reader.windows(window, types),
        attention_scale=scale, **settings,
    )  # fmt: skip


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, norms=NORMS)
