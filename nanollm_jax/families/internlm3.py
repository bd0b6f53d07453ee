"""InternLM 3: LLaMA with heads of a width of their own and other names for its biases.  Shanghai AI Laboratory 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored, table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. As in the reference, all matrices have a bias or none has."""
    bias = reader.flag("qkv_bias", reader.flag("attention_bias", False))
    if reader.flag("bias", reader.flag("mlp_bias", False)) != bias:
        raise reader.error(
            "bias" if "bias" in reader.values else "mlp_bias", f"{bias}, as for queries, keys and values"
        )
    return llama.read(
        reader, default_max_positions=32768, default_kv_heads=2, default_head_dim=128, eps=("rms_norm_eps", 1e-5),
        qkv_bias=bias, attention_out_bias=bias, mlp_bias=bias,
    )  # fmt: skip
