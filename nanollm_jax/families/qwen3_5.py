"""Qwen 3.5 and 3.6, text: the gated delta rule in most layers and gated attention in the others, as in Qwen 3 Next.

Experts, where there are some, are in every layer, beside one that all tokens share.
"""

from __future__ import annotations

from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, qwen2_5_vl, qwen2_moe, qwen3_next
from nanollm_jax.families.qwen2_5_vl import PREFIXES, one_position
from nanollm_jax.families.reader import Reader, text_part
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

# the sizes of the 9B and of the 35B-A3B, which a file need not name
DEFAULTS = {
    "qwen3_5": {"vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
                "num_attention_heads": 16, "num_key_value_heads": 4},
    "qwen3_5_moe": {"vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
                    "num_key_value_heads": 2},
}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig, of the whole or of the text's part alone."""
    whole = reader.family.removesuffix("_text")
    if reader.family != whole:
        return read(reader.having(**DEFAULTS[whole] | reader.values))
    return text_part(reader, f"{whole}_text", read, DEFAULTS[whole], tied=False)


def read(reader: Reader) -> ModelConfig:
    """The text model."""
    experts: dict[str, Any] = {}
    if reader.family == "qwen3_5_moe_text":
        experts = {
            "num_experts": reader.count("num_experts", 256), "experts_per_token": reader.count("num_experts_per_tok", 8),
            "expert_size": reader.count("moe_intermediate_size", 512), "shared_gate": True,
            "shared_size": reader.count("shared_expert_intermediate_size", 512),
        }  # fmt: skip
        reader = reader.having(intermediate_size=1)  # no layer has an MLP alone
    config = llama.read(
        one_position(reader), default_max_positions=32768, default_head_dim=256, default_partial=0.25,
        **qwen3_next.heads(reader), **experts,
    )  # fmt: skip
    return qwen3_next.with_states(config, reader)


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention, or of its state, whose inputs are several tensors."""
    mixer = config.layers[int(ours.split(".")[1])].mixer
    if mixer is None:
        return llama.attention(config, ours, theirs)
    ours, theirs = ours.replace("attention", "recurrent"), theirs.replace("self_attn", "linear_attn")
    (i, v, r), win = (config.sizes[letter] for letter in "ivr"), f"{ours}.win"
    gates, rates = 2 * i + v, 2 * i + 2 * v
    return [
        *qwen3_next.parts(config, win, f"{theirs}.in_proj_qkv.weight", "D", "D"),
        Row(win, f"{theirs}.in_proj_z.weight", "(h v) D -> h v D", (1, gates, gates + v)),
        Row(win, f"{theirs}.in_proj_b.weight", "(h r) D -> h r D", (1, rates, rates + r)),
        Row(win, f"{theirs}.in_proj_a.weight", "(h r) D -> h r D", (1, rates + r, rates + 2 * r)),
        *qwen3_next.state(config, ours, theirs),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, attention=attention, mlp=qwen2_moe.mlp)


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: what sees images, layers that guess further tokens."""
    return (*qwen2_5_vl.ignored(config), r"mtp\..*")
