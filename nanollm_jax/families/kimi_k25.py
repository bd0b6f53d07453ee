"""Kimi K2.5 and 2.6, text: DeepSeek V3 with more experts and fewer heads, without what sees images.  arXiv:2507.20534"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import deepseek_v3
from nanollm_jax.families.deepseek_v3 import table
from nanollm_jax.families.gemma3 import PREFIXES
from nanollm_jax.families.reader import Reader, text_part

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

DEFAULTS = {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
            "num_attention_heads": 128, "num_key_value_heads": 128}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. The text is DeepSeek V3's, by that name or as Kimi K2."""
    text = reader.object("text_config")
    if text.get("model_type", "deepseek_v3") not in ("deepseek_v3", "kimi_k2"):
        raise text.error("model_type", "'deepseek_v3' or 'kimi_k2'")
    return text_part(reader, "deepseek_v3", deepseek_v3.from_hf, DEFAULTS, tied=True)


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: what sees images, and layers that guess further tokens."""
    return (*deepseek_v3.ignored(config), r"(model\.)?(vision_tower|mm_projector|multi_modal_projector)\..*")
