"""Mistral Small 3.1 and 3.2 and Ministral 3 as published, text, without what sees images.  Mistral AI 2025"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import ministral3, mistral
from nanollm_jax.families.gemma3 import PREFIXES, ignored
from nanollm_jax.families.llama import table
from nanollm_jax.families.reader import Reader, text_part

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


TEXTS = {"mistral": mistral, "ministral3": ministral3}


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. The text is Mistral's, or says that it is Ministral 3's."""
    text = reader.object("text_config")
    name = text.get("model_type", "mistral")
    if name not in tuple(TEXTS):
        raise text.error("model_type", " or ".join(map(repr, TEXTS)))
    return text_part(reader, name, TEXTS[name].from_hf, {}, tied=False)
