"""Qwen 3.5, text: the gated delta rule in most layers and gated attention in the others, as in Qwen 3 Next, without experts."""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, qwen2_5_vl, qwen3_next
from nanollm_jax.families.qwen2_5_vl import PREFIXES, one_position
from nanollm_jax.families.reader import Reader, text_part
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

# the sizes of the 9B, which its file need not name
DEFAULTS = {"vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
            "num_attention_heads": 16}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig, of the whole or of the text's part alone."""
    if reader.family.endswith("_text"):
        return read(reader.having(**DEFAULTS | reader.values))
    return text_part(reader, "qwen3_5_text", read, DEFAULTS, tied=False)


def read(reader: Reader) -> ModelConfig:
    """The text model."""
    config = llama.read(
        one_position(reader), default_max_positions=32768, default_kv_heads=4, default_head_dim=256, default_partial=0.25,
        **qwen3_next.heads(reader),
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
    return llama.table(config, attention=attention)


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: what sees images, layers that guess further tokens."""
    return (*qwen2_5_vl.ignored(config), r"mtp\..*")
