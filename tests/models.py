"""Small random models of every family, for tests: biases and norm scales random, group sizes and sizes odd."""

from __future__ import annotations

from typing import Any

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

SHARED = {
    "vocab_size": 83, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
DELTA = {
    "head_dim": 12, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 6, "linear_key_head_dim": 10, "linear_value_head_dim": 7, "partial_rotary_factor": 0.5,
}  # fmt: skip
DELTA_EXPERTS = {
    "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20,
}  # fmt: skip
# one of every further family, with what is special to it switched on
FURTHER = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"head_dim": 10, "attention_bias": True},
    "phi3": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 32, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0]}},
    "gemma": {"head_dim": 12},
    "gemma2": {"head_dim": 12, "sliding_window": 6},
    "gemma3_text": {"head_dim": 12, "sliding_window": 6, "sliding_window_pattern": 2, "rope_theta": 1e6,
                    "final_logit_softcapping": 3.0},
    "gemma4_text": {"head_dim": 12, "global_head_dim": 20, "sliding_window": 6, "final_logit_softcapping": 3.0,
                    "hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 83, "num_kv_shared_layers": 2,
                    "use_double_wide_mlp": True, "num_hidden_layers": 4,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]},
    # as the text's part of what sees and hears
    "gemma4": {"head_dim": 12, "global_head_dim": 20, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
               "hidden_size_per_layer_input": 0, "sliding_window": 6, "final_logit_softcapping": 3.0,
               "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 12,
               "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    "olmo2": {"num_key_value_heads": 4},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0,
                "attention_multiplier": 0.1},
    "smollm3": {"no_rope_layer_interval": 2},
    "starcoder2": {"sliding_window": 7},
    "gpt_neox": {"num_key_value_heads": None, "rotary_pct": 0.5},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "mlp_only_layers": [1]},
    "olmoe": {"num_experts": 5, "num_experts_per_tok": 2, "clip_qkv": 4.0},
    "phi": {"partial_rotary_factor": 0.5},
    "hunyuan_v1_dense": {"head_dim": 10},
    "ministral3": {"head_dim": 10, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.3}},
    "gpt_oss": {"head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 6},
    "deepseek_v3": {"num_key_value_heads": 4, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
                    "n_group": 3, "topk_group": 2, "first_k_dense_replace": 1, "kv_lora_rank": 14, "q_lora_rank": 18,
                    "qk_rope_head_dim": 6, "qk_nope_head_dim": 10, "v_head_dim": 8, "rope_scaling": {
                        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7,
                        "mscale_all_dim": 1.3}},
    "qwen3_next": DELTA | DELTA_EXPERTS | {"mlp_only_layers": [1]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "conv_bias": True, "block_auto_adjust_ff_dim": False},
    "granitemoehybrid": {"num_local_experts": 0, "shared_intermediate_size": 40, "embedding_multiplier": 3.0,
                         "residual_multiplier": 0.6, "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 8,
                         "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 10, "mamba_proj_bias": True},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "mamba", "attention", "mlp"], "num_hidden_layers": 5, "head_dim": 10,
                   "mamba_num_heads": 8, "mamba_head_dim": 6, "n_groups": 2, "ssm_state_size": 10, "n_routed_experts": 6,
                   "num_experts_per_tok": 2, "moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 20,
                   "moe_latent_size": 20, "routed_scaling_factor": 1.7},
    "glm4_moe": {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "n_shared_experts": 2,
                 "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.7, "use_qk_norm": True, "attention_bias": True},
}  # fmt: skip
FURTHER = {name: SHARED | special | {"model_type": name} for name, special in FURTHER.items()}
# those with recurrent layers
HYBRIDS = ("lfm2", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "granitemoehybrid", "nemotron_h")
# families whose mathematics is that of others: a config reader and a table of their own
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
RELATED = {
    "olmo3": {"sliding_window": 6, "rope_scaling": YARN},
    "seed_oss": {"head_dim": 10},
    "ministral": {"head_dim": 8, "sliding_window": 6, "layer_types": ["full_attention", *["sliding_attention"] * 2]},
    "cwm": {"head_dim": 10, "sliding_window": 6, "mlp_bias": True},
    "exaone4": {"sliding_window": 6, "sliding_window_pattern": 2},
    "granitemoe": {"num_local_experts": 5, "num_experts_per_tok": 2, "attention_multiplier": 0.1},
    "stablelm": {"use_qkv_bias": True},
    "internlm3": {"head_dim": 10, "qkv_bias": True, "bias": True},
    "glm": {"head_dim": 12},
    "glm4": {"head_dim": 12},
    "ernie4_5": {"head_dim": 10, "use_bias": True},
    "arcee": {"mlp_bias": True},
    "deepseek_v2": {"num_key_value_heads": 4, "n_routed_experts": 6, "num_experts_per_tok": 2,
                    "moe_intermediate_size": 12, "kv_lora_rank": 14, "q_lora_rank": None, "qk_rope_head_dim": 6,
                    "qk_nope_head_dim": 10, "v_head_dim": 8},
    "glm4_moe_lite": {"num_key_value_heads": 4, "n_routed_experts": 5, "num_experts_per_tok": 2,
                      "moe_intermediate_size": 12, "kv_lora_rank": 14, "q_lora_rank": 18, "qk_rope_head_dim": 6,
                      "qk_nope_head_dim": 10, "v_head_dim": 8},
    "kimi_k2": {"num_key_value_heads": 4, "n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
                "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 14, "q_lora_rank": None,
                "qk_rope_head_dim": 6, "qk_nope_head_dim": 10, "v_head_dim": 8},
    "minicpm3": {"num_key_value_heads": 4, "kv_lora_rank": 14, "q_lora_rank": 18, "qk_rope_head_dim": 6,
                 "qk_nope_head_dim": 10, "dim_model_base": 16},
    "nemotron": {},
    "gpt_bigcode": {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 256},
    "gptj": {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 256, "rotary_dim": 4},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 6, "sliding_window_pattern": 2},
    "qwen2_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "mlp_only_layers": [1],
                  "shared_expert_intermediate_size": 20},
    "dots1": {"n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "n_shared_experts": 1,
              "first_k_dense_replace": 1, "sliding_window": 6, "max_window_layers": 2},
    "ernie4_5_moe": {"head_dim": 10, "use_bias": True, "moe_num_experts": 5, "moe_k": 2, "moe_intermediate_size": 12,
                     "moe_num_shared_experts": 2},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA | DELTA_EXPERTS,
    "minimax_m2": {"head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 2, "rotary_dim": 4},
}  # fmt: skip
OF_GPT2 = ("gpt_bigcode", "gptj")  # whose files have GPT-2's keys
RELATED = {
    name: ({"vocab_size": 83} if name in OF_GPT2 else SHARED) | special | {"model_type": name}
    for name, special in RELATED.items()
}
# models that see, whose text is read
COMPOSITE = {
    name: {"model_type": name, "text_config": SHARED | special, "vision_config": {"hidden_size": 3}}
    for name, special in {
        "gemma3": FURTHER["gemma3_text"],
        "gemma4": FURTHER["gemma4"] | {"model_type": "gemma4_text"},
        "mistral3": {"sliding_window": 6},
        "llava": {},
        "kimi_k25": FURTHER["deepseek_v3"],
        "qwen2_vl": {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}},
        "qwen2_5_vl": {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}},
        "qwen3_vl": {"head_dim": 10},
        "qwen3_vl_moe": {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "mlp_only_layers": [1],
        },
        "qwen3_5": DELTA,
        "qwen3_5_moe": DELTA | DELTA_EXPERTS,
    }.items()
}
INVARIANT = CONFIG_JSON | {name: FURTHER[name] for name in ("gemma3_text", "gpt_neox", "qwen3_moe", "deepseek_v3")}

# as one program: without jit every operation is compiled by itself, for every shape that it has
forward = jax.jit(nano.forward, static_argnames="config")


def random_model(family: str, **changes: Any) -> nano.Model:
    """One model of a family, without a tokenizer; always the same numbers."""
    config, _ = nano.read_config((CONFIG_JSON | FURTHER | RELATED)[family] | changes)
    params = nano.init_params(config, jax.random.key(5), jnp.float32)
    for layer in params["layers"] if family.startswith("gemma4") else ():
        # whose scores are not divided: with scales about 1 each looks at one token, and rounding decides which
        layer["attention"]["q_norm"]["scale"] *= 0.2
    return nano.Model(config, params)
