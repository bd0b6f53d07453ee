"""Phi 1, 1.5 and 2: attention and MLP side by side behind one norm, biases everywhere.  arXiv:2306.11644"""

from __future__ import annotations

from dataclasses import replace

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    if reader.flag("qk_layernorm", False):
        raise reader.error("qk_layernorm", "false")
    return llama.read(
        reader, default_max_positions=2048, default_partial=0.5, eps=("layer_norm_eps", 1e-5), norm="layer_norm",
        activation=("hidden_act", "gelu_new"), gated_mlp=False, qkv_bias=True, attention_out_bias=True, mlp_bias=True,
        parallel_residual=True, shared_norm=True, head_bias=True,
    )  # fmt: skip


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention."""
    return [replace(row, name=row.name.replace(".o_proj.", ".dense.")) for row in llama.attention(config, ours, theirs)]


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP."""
    return llama.plain_mlp(config, ours, theirs, ("fc1", "fc2"))


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    rows = llama.table(config, norms={"attention_norm": "input_layernorm"}, attention=attention, mlp=mlp)
    return [replace(row, name=row.name.replace("norm.", "final_layernorm.", 1)) if row.path.startswith("final_norm") else row
            for row in rows]  # fmt: skip
