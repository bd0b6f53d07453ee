"""Granite 4 without Mamba and without experts (micro, 350M, 1B): Granite with gate and up in one tensor."""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import granite, llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. What is said of Mamba and of experts means nothing where there are none."""
    key = "layers_block_type" if "layers_block_type" in reader.values else "layer_types"
    types = reader.get(key)
    if not isinstance(types, list) or set(types) - {"attention", "full_attention"}:
        raise reader.error(key, "attention in every layer: Mamba's are not supported")
    if len(types) != reader.count("num_hidden_layers"):
        raise reader.error(key, "one entry a layer")
    if reader.get("num_local_experts", 8) != 0:
        raise reader.error("num_local_experts", "0: experts beside an MLP are not supported")
    if reader.get("position_embedding_type") not in (None, "nope", "rope"):
        raise reader.error("position_embedding_type", "'rope', or nothing or 'nope' for none")
    reader.get("layer_types")
    rotates = reader.get("position_embedding_type") == "rope"
    width = reader.count("shared_intermediate_size", 1024)
    return granite.read(reader.having(intermediate_size=width), rotates=[rotates] * len(types))


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP."""
    theirs = theirs.replace(".mlp", ".shared_mlp")
    return [
        Row(f"{ours}.up", f"{theirs}.input_linear.weight", "(U F) D -> U F D"),
        Row(f"{ours}.down", f"{theirs}.output_linear.weight", "D F"),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, mlp=mlp)
