"""Gemma 3, text: Gemma 2 with q/k norms instead of soft caps, and another rope where a layer has a window.  arXiv:2503.19786

A checkpoint for images as well (model_type gemma3) is read without what sees them: text goes the same way through it.
"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import gemma2, llama
from nanollm_jax.families.gemma2 import table
from nanollm_jax.families.reader import Reader, text_part

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]
PREFIXES = (*gemma2.PREFIXES, "language_model.model.", "model.language_model.")


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Of a model that sees images, what is under text_config, which names few sizes."""
    if reader.get("text_config") is None:
        reader.family = "gemma3_text"
        return read(reader)
    sizes = {"vocab_size": 262208, "num_attention_heads": 8}
    return text_part(reader, "gemma3_text", read, sizes, tied=True)


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: what sees images."""
    return (*gemma2.ignored(config), r"(model\.)?(vision_tower|multi_modal_projector)\..*")


def read(reader: Reader) -> ModelConfig:
    """The text model."""
    every = reader.count("sliding_window_pattern", 6)
    # the reference writes this name and does not read it: layer_types, written beside it, says where the windows are
    if reader.count("_sliding_window_pattern", every) != every and reader.get("layer_types") is None:
        raise reader.error("_sliding_window_pattern", f"{every}, or layer_types beside it")
    cap = reader.optional("final_logit_softcapping")
    return llama.with_local_rope(
        reader, reader.number("rope_local_base_freq", 10000.0),
        lambda reader: gemma2.read(
            reader, every=every, default_max_positions=131072, default_theta=1e6, qk_norm="head", logit_softcap=cap,
        ),
    )  # fmt: skip
