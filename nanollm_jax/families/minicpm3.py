"""MiniCPM 3: keys and values of a latent, one MLP a layer, and three multipliers that keep sizes apart.  arXiv:2404.06395"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import deepseek_v3, llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. A null multiplier changes nothing; a missing one is the published model's."""
    width, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    depth, base = reader.optional("scale_depth", 1.4), reader.optional("dim_model_base", 256.0)
    given = {"kv_lora_rank": 256, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "tie_word_embeddings": True}
    missing = {key: value for key, value in given.items() if reader.get(key) is None}
    return deepseek_v3.read(
        reader.having(**missing), default_max_positions=32768, query_width=768, value=width // heads,
        eps=("rms_norm_eps", 1e-5), mlp_bias=reader.flag("mlp_bias", False),
        embedding_scale=reader.number("scale_emb", 12.0),
        residual_scale=1.0 if depth is None else depth / reader.count("num_hidden_layers") ** 0.5,
        logit_scale=1.0 if base is None else base / width,
    )  # fmt: skip


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, attention=deepseek_v3.attention)
