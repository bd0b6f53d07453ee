"""Mistral Small 3.1 and 3.2, text: Mistral, without what sees images.  Mistral AI 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import mistral
from nanollm_jax.families.gemma3 import PREFIXES, ignored
from nanollm_jax.families.llama import table
from nanollm_jax.families.reader import Reader, text_part

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. The text has to be Mistral's: Ministral 3's is another."""
    text = reader.object("text_config")
    if text.get("model_type", "mistral") != "mistral":
        raise text.error("model_type", "'mistral'")
    return text_part(reader, "mistral", mistral.from_hf, {}, tied=False)
