"""StarCoder 2: rope and grouped queries with layer norm, a plain MLP and biases everywhere.  arXiv:2402.19173"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    for key, known in (("mlp_type", "default"), ("norm_type", "layer_norm")):
        if reader.get(key, known) != known:
            raise reader.error(key, f"{known!r}")
    bias = reader.flag("use_bias", True)
    window = reader.optional_count("sliding_window")
    return llama.read(
        reader, default_max_positions=4096, default_kv_heads=2, default_tied=True, eps=("norm_epsilon", 1e-5),
        activation=("hidden_act", "gelu_pytorch_tanh"), window=window, norm="layer_norm", gated_mlp=False,
        qkv_bias=bias, attention_out_bias=bias, mlp_bias=bias,
    )  # fmt: skip


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP."""
    return llama.plain_mlp(config, ours, theirs, ("c_fc", "c_proj"))


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
