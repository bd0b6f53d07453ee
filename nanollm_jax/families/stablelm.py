"""StableLM 3B and 2 1.6B: LLaMA with layer norm and a quarter of each head rotated.  arXiv:2402.17834"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. StableLM 2 12B, whose heads have a norm each, is refused."""
    for key in ("qk_layernorm", "use_parallel_residual"):
        if reader.flag(key, False):
            raise reader.error(key, "false")
    return llama.read(
        reader, default_max_positions=4096, default_kv_heads=32, default_partial=0.25, eps=("layer_norm_eps", 1e-5),
        norm="layer_norm", qkv_bias=reader.flag("use_qkv_bias", False),
    )  # fmt: skip
