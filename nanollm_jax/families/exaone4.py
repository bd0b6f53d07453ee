"""EXAONE 4: norms behind attention and MLP only, each head normalised, rope where a layer has a window.  arXiv:2507.11407"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.olmo2 import table
from nanollm_jax.families.reader import Reader

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. A model without any window rotates in every layer."""
    window = reader.optional_count("sliding_window", 4096)
    windows = reader.windows(window, kinds(reader, window))
    return llama.read(
        reader, default_max_positions=2048, default_kv_heads=32, eps=("rms_norm_eps", 1e-5), pre_norm=False,
        post_norm=True, qk_norm="head", windows=windows,
        rotates=() if window is None else [bool(one) for one in windows],
    )  # fmt: skip


def kinds(reader: Reader, window: int | None) -> list[str]:
    """What each layer is where layer_types does not say it: every n-th is full, or L and G stand for local and global."""
    layers, pattern = reader.count("num_hidden_layers"), reader.get("sliding_window_pattern", 4)
    if isinstance(pattern, str) and set(pattern) <= {"L", "G"} and pattern:
        local = [pattern[layer % len(pattern)] == "L" for layer in range(layers - 1)] + [False]  # the last never is
    elif window is None or reader.get("layer_types") is not None:
        local = [False] * layers
    else:
        every = reader.count("sliding_window_pattern", 4)
        local = [(layer + 1) % every != 0 for layer in range(layers)]
    return ["sliding_attention" if window and here else "full_attention" for here in local]
