"""OLMo 3: OLMo 2 with windows in three of four layers, and rope stretched in the fourth only.  arXiv:2512.13961"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.olmo2 import table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. rope_theta beside the objects is that of the layers without a window, as in the reference."""
    window, bias = reader.optional_count("sliding_window", 4096), reader.flag("attention_bias", False)
    layers = range(reader.count("num_hidden_layers"))
    types = ["full_attention" if (layer + 1) % 4 == 0 else "sliding_attention" for layer in layers]

    def read(reader: Reader) -> ModelConfig:
        return llama.read(
            reader, default_max_positions=2048, default_theta=5e5, eps=("rms_norm_eps", 1e-5), pre_norm=False,
            post_norm=True, qk_norm="width", qkv_bias=bias, attention_out_bias=bias,
            windows=reader.windows(window, types),
        )  # fmt: skip

    return llama.with_local_rope(reader, 5e5, read)
