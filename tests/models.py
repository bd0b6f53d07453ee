"""Small random models of every family, for tests: biases and norm scales random, group sizes and sizes odd."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import nanollm_jax as nano

LLAMA = {
    "model_type": "llama", "vocab_size": 101, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32},
}  # fmt: skip
MISTRAL = {
    "model_type": "mistral", "vocab_size": 97, "hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 14, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "sliding_window": 7, "rope_theta": 1e6,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 89,
    "n_positions": 256,
    "n_embd": 36,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 50,
}

CONFIG_JSON = {"llama": LLAMA, "mistral": MISTRAL, "gpt2": GPT2}


def random_model(family: str) -> nano.Model:
    """One model of a family, without a tokenizer; always the same numbers."""
    config, _ = nano.read_config(CONFIG_JSON[family])
    return nano.Model(config, nano.init_params(config, jax.random.key(5), jnp.float32))
