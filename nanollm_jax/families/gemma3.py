"""Gemma 3, text: Gemma 2 with q/k norms instead of soft caps, and another rope where a layer has a window.  arXiv:2503.19786

A checkpoint for images as well (model_type gemma3) is read without what sees them: text goes the same way through it.
"""

from __future__ import annotations

import dataclasses

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import gemma2
from nanollm_jax.families.gemma2 import table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]
PREFIXES = (*gemma2.PREFIXES, "language_model.model.", "model.language_model.")


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Of a model that sees images, what is under text_config, which names few sizes."""
    if reader.get("text_config") is None:
        reader.family = "gemma3_text"
        return read(reader)
    text = reader.object("text_config", "gemma3_text")
    text.get("model_type")
    text.get("tie_word_embeddings")  # the reference ties what the whole says
    tied = reader.flag("tie_word_embeddings", True)
    sizes = {"vocab_size": 262208, "num_attention_heads": 8} | text.values
    config = read(text.having(**sizes | {"tie_word_embeddings": tied}))
    text.finish()
    return config


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: what sees images."""
    return (*gemma2.ignored(config), r"(model\.)?(vision_tower|multi_modal_projector)\..*")


def read(reader: Reader) -> ModelConfig:
    """The text model. rope_scaling, where given, is that of the layers without a window."""
    ropes = reader.get("rope_parameters") or {}
    if not isinstance(ropes, dict) or not ropes.keys() <= {"full_attention", "sliding_attention"}:
        raise reader.error("rope_parameters", "an object with full_attention and sliding_attention")
    local_theta = reader.number("rope_local_base_freq", 10000.0)
    every = reader.count("sliding_window_pattern", 6)
    # the reference writes this name and does not read it: layer_types, written beside it, says where the windows are
    if reader.count("_sliding_window_pattern", every) != every and reader.get("layer_types") is None:
        raise reader.error("_sliding_window_pattern", f"{every}, or layer_types beside it")
    config = gemma2.read(
        reader.having(rope_parameters=ropes.get("full_attention")), every=every, default_max_positions=131072,
        default_theta=1e6, qk_norm="head",
        logit_softcap=reader.optional("final_logit_softcapping"),
    )  # fmt: skip
    assert config.rope_theta is not None
    inner = reader.having(rope_parameters=ropes.get("sliding_attention"), rope_scaling=None, rope_theta=None)
    local, whole = inner.rope(config.max_positions, local_theta)[:2], (config.rope_theta, config.rope_scaling)
    return dataclasses.replace(
        config, ropes=tuple(whole if config.window(layer) is None else local for layer in range(config.num_layers))
    )
