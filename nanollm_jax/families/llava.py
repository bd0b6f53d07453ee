"""LLaVA 1.5, BakLLaVA and Pixtral 12B, text: LLaMA, Mistral or Qwen 2, without what sees images.  arXiv:2310.03744"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, mistral, qwen2
from nanollm_jax.families.gemma3 import PREFIXES, ignored
from nanollm_jax.families.llama import table
from nanollm_jax.families.reader import Reader, text_part

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

TEXTS = {"llama": llama, "mistral": mistral, "qwen2": qwen2}
# the sizes that a file need not name: those of the first model of each
SHARED = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
SIZES = {
    "llama": SHARED | {"vocab_size": 32000, "intermediate_size": 11008},
    "mistral": SHARED | {"vocab_size": 32000, "intermediate_size": 14336},
    "qwen2": SHARED | {"vocab_size": 151936, "intermediate_size": 22016},
}


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Embeddings are tied where either part of the file ties them, as in the reference."""
    text = reader.object("text_config")
    name = text.get("model_type", "llama")
    if name not in tuple(TEXTS):
        raise text.error("model_type", " or ".join(map(repr, TEXTS)))
    tied = reader.flag("tie_word_embeddings", False) or text.flag("tie_word_embeddings", False)
    return text_part(reader.having(tie_word_embeddings=tied), name, TEXTS[name].from_hf, SIZES[name], tied=tied)
