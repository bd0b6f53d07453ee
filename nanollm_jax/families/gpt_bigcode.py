"""SantaCoder, StarCoder 1 and others of BigCode: GPT-2 whose heads look at one key and value.  arXiv:2301.03988, 2305.06161"""

from __future__ import annotations

from dataclasses import replace

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import gpt2
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

PREFIXES = gpt2.PREFIXES
ignored = gpt2.ignored
# weights are stored outputs first here, and where each head has a key of its own these lie behind its query
AXES = {
    "attn.c_attn.weight": "(K Q H) D -> K Q H D", "attn.c_attn.bias": "(K Q H) -> K Q H", "mlp.c_fc.weight": "F D -> 1 F D",
    "attn.c_proj.weight": "D (N H) -> D N H", "mlp.c_proj.weight": "D F",
}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    config = gpt2.read(reader, "gelu_pytorch_tanh", one_key=reader.flag("multi_query", True))
    if reader.count("num_key_value_heads", config.num_kv_heads) != config.num_kv_heads:
        raise reader.error("num_key_value_heads", f"{config.num_kv_heads}, as multi_query says")
    return config


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return [replace(row, axes=AXES.get(row.name.split(".", 2)[-1], row.axes)) for row in gpt2.table(config)]
