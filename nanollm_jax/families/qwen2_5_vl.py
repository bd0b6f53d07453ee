"""Qwen 2 VL and 2.5 VL, text: Qwen 2, without what sees images.  arXiv:2409.12191, 2502.13923

Its rope turns by three positions, in time, height and width. For text they are the same number, and the same as one.
"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, qwen2
from nanollm_jax.families.llama import table
from nanollm_jax.families.reader import Reader, text_part

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]
PREFIXES = ("model.", "model.language_model.", "")

# the sizes of the largest, which its file need not name
DEFAULTS = {
    "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "max_window_layers": 80,
}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Files of transformers 4 have no text_config: its keys are beside the rest."""
    text = reader.get("text_config")
    if text is None:
        return read(reader.having(**DEFAULTS | reader.values))
    if isinstance(text, dict) and text.get("tie_word_embeddings") is True:
        reader = reader.having(tie_word_embeddings=True)  # either of the two is believed
    return text_part(reader, "qwen2", read, DEFAULTS, tied=False)


def read(reader: Reader) -> ModelConfig:
    """The text model."""
    return qwen2.from_hf(one_position(reader))


def one_position(reader: Reader) -> Reader:
    """The same file without a word of how three positions share the pairs of a head."""
    changes = {}
    for key in ("rope_scaling", "rope_parameters"):
        rope = reader.get(key)
        if isinstance(rope, dict):
            changes[key] = {
                name: "default" if value == "mrope" else value
                for name, value in rope.items() if name not in ("mrope_section", "mrope_interleaved")
            }  # fmt: skip
    return reader.having(**changes)


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: what sees images."""
    return (*llama.ignored(config), r"(model\.)?visual\..*")
