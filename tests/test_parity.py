"""The same numbers as the reference implementation: tiny random checkpoints written by transformers, loaded by us.

Needs torch and transformers: `make parity`. Everything about the reference is in this file.
"""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import CONFIG_JSON, FURTHER, forward

import nanollm_jax as nano
from nanollm_jax import sampling as smp
from nanollm_jax.families import FAMILIES

pytestmark = pytest.mark.parity

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}

LLAMA = dict(
    model_type="llama", vocab_size=101, hidden_size=48, intermediate_size=88, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
)  # fmt: skip
MISTRAL = LLAMA | dict(model_type="mistral", sliding_window=None)
GPT2 = dict(model_type="gpt2", vocab_size=99, n_positions=200, n_embd=48, n_layer=3, n_head=4)

QWEN2 = LLAMA | dict(model_type="qwen2")
QWEN3 = LLAMA | dict(model_type="qwen3", head_dim=22)
PHI3 = LLAMA | dict(model_type="phi3", pad_token_id=0)
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
            "short_factor": [1.0, 1.1, 1.3, 1.5, 1.6, 1.7], "long_factor": [1.0, 2.0, 3.5, 5.0, 6.0, 8.0]}  # fmt: skip
GEMMA = LLAMA | dict(model_type="gemma", head_dim=16, pad_token_id=0)
GEMMA2 = GEMMA | dict(model_type="gemma2", sliding_window=11, query_pre_attn_scalar=40)
GEMMA3 = GEMMA2 | dict(model_type="gemma3_text", rope_parameters={
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    layer_types=["sliding_attention", "sliding_attention", "full_attention"])  # fmt: skip
GEMMA4 = LLAMA | dict(
    model_type="gemma4_text", pad_token_id=0, head_dim=16, global_head_dim=24, num_global_key_value_heads=1,
    attention_k_eq_v=True, hidden_size_per_layer_input=0, sliding_window=9, final_logit_softcapping=3.0,
    layer_types=["sliding_attention", "full_attention", "full_attention"])  # fmt: skip
GEMMA4_SMALL = GEMMA4 | dict(
    attention_k_eq_v=False, hidden_size_per_layer_input=10, vocab_size_per_layer_input=101, num_kv_shared_layers=4,
    use_double_wide_mlp=True, num_hidden_layers=7, layer_types=[
        *["sliding_attention", "full_attention", "sliding_attention"] * 2, "full_attention"])  # fmt: skip
GEMMA4_EXPERTS = GEMMA4 | dict(enable_moe_block=True, num_experts=7, top_k_experts=3, moe_intermediate_size=24)
OLMO2 = LLAMA | dict(model_type="olmo2")
GRANITE = LLAMA | dict(model_type="granite", embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=0.3,
                       attention_multiplier=0.2)  # fmt: skip
SMOLLM3 = LLAMA | dict(model_type="smollm3", no_rope_layer_interval=2, pad_token_id=0)
STARCODER2 = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"} | dict(model_type="starcoder2")
NEOX = dict(model_type="gpt_neox", vocab_size=99, hidden_size=48, num_hidden_layers=3, num_attention_heads=3,
            intermediate_size=70, max_position_embeddings=256)  # fmt: skip
MIXTRAL = LLAMA | dict(model_type="mixtral", num_local_experts=5, num_experts_per_tok=2)
QWEN3_MOE = QWEN3 | dict(model_type="qwen3_moe", num_experts=7, num_experts_per_tok=3, moe_intermediate_size=24)
OLMOE = LLAMA | dict(model_type="olmoe", num_experts=6, num_experts_per_tok=2, intermediate_size=24, pad_token_id=0)

OLMO3 = LLAMA | dict(model_type="olmo3", sliding_window=12, num_hidden_layers=4, rope_parameters={
    "full_attention": YARN | dict(rope_theta=5e5, attention_factor=1.2),
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}})  # fmt: skip
SEED_OSS = LLAMA | dict(model_type="seed_oss", head_dim=14)
MINISTRAL = LLAMA | dict(model_type="ministral", head_dim=14, sliding_window=9, layer_types=[
    "sliding_attention", "full_attention", "sliding_attention"])  # fmt: skip
CWM = LLAMA | dict(model_type="cwm", head_dim=16, sliding_window=9, num_hidden_layers=5, rope_parameters=LLAMA3)
EXAONE4 = LLAMA | dict(model_type="exaone4", sliding_window=9, sliding_window_pattern=2)
GRANITEMOE = GRANITE | dict(model_type="granitemoe", num_local_experts=5, num_experts_per_tok=3)
GRANITE4 = GRANITE | dict(model_type="granitemoehybrid", num_local_experts=0, shared_intermediate_size=56,
                          position_embedding_type="rope", layer_types=["full_attention"] * 3, mamba_n_heads=8,
                          mamba_d_head=12, mamba_n_groups=1, mamba_d_state=8)  # fmt: skip
GRANITE4_H = GRANITE4 | dict(position_embedding_type=None, tie_word_embeddings=True, layer_types=[
    "linear_attention", "full_attention", "linear_attention"])  # fmt: skip
STABLELM = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"} | dict(
    model_type="stablelm", hidden_size=64, use_qkv_bias=True)  # fmt: skip
INTERNLM3 = LLAMA | dict(model_type="internlm3", head_dim=14, attention_bias=True, mlp_bias=True)
GLM = LLAMA | dict(model_type="glm", head_dim=16, pad_token_id=0)
GLM4 = GLM | dict(model_type="glm4")
ERNIE4_5 = LLAMA | dict(model_type="ernie4_5", head_dim=14, use_bias=True)

GPT_BIGCODE = GPT2 | dict(model_type="gpt_bigcode")
GPTJ = GPT2 | dict(model_type="gptj", rotary_dim=4)
ARCEE = LLAMA | dict(model_type="arcee")
NEMOTRON = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"} | dict(model_type="nemotron")
NEMOTRON_H = dict(
    model_type="nemotron_h", vocab_size=101, hidden_size=48, intermediate_size=70, num_attention_heads=4, head_dim=14,
    num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, mamba_num_heads=8, mamba_head_dim=6, n_groups=2,
    ssm_state_size=10, n_routed_experts=7, num_experts_per_tok=3, moe_intermediate_size=24,
    moe_shared_expert_intermediate_size=40, routed_scaling_factor=1.7,
    layers_block_type=["linear_attention", "moe", "full_attention", "mlp", "linear_attention"])  # fmt: skip
MINISTRAL3 = LLAMA | dict(model_type="ministral3", head_dim=14, rope_parameters=YARN | dict(
    llama_4_scaling_beta=0.3, original_max_position_embeddings=16))  # fmt: skip
HUNYUAN = LLAMA | dict(model_type="hunyuan_v1_dense", head_dim=14)
COHERE = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"} | dict(
    model_type="cohere", pad_token_id=0, logit_scale=0.4
)
COHERE2 = COHERE | dict(model_type="cohere2", sliding_window=9, sliding_window_pattern=2)
PHI = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"} | dict(
    model_type="phi", num_key_value_heads=4
)
QWEN2_MOE = LLAMA | dict(model_type="qwen2_moe", num_experts=7, num_experts_per_tok=3, moe_intermediate_size=24,
                         shared_expert_intermediate_size=40)  # fmt: skip
GLM4_MOE = LLAMA | dict(model_type="glm4_moe", head_dim=16, n_routed_experts=8, num_experts_per_tok=3, n_group=4,
                        topk_group=2, moe_intermediate_size=24, routed_scaling_factor=1.7, n_shared_experts=2)  # fmt: skip
DOTS1 = LLAMA | dict(model_type="dots1", head_dim=14, n_routed_experts=7, num_experts_per_tok=3, moe_intermediate_size=24,
                     n_shared_experts=1, first_k_dense_replace=1, sliding_window=9, max_window_layers=2)  # fmt: skip
ERNIE4_5_MOE = LLAMA | dict(model_type="ernie4_5_moe", moe_num_experts=7, moe_k=3, moe_intermediate_size=24,
                            moe_num_shared_experts=2, use_bias=True)  # fmt: skip
MINIMAX_M2 = LLAMA | dict(model_type="minimax_m2", head_dim=16, num_local_experts=7, num_experts_per_tok=3,
                          intermediate_size=24, rotary_dim=8)  # fmt: skip

GPT_OSS = LLAMA | dict(model_type="gpt_oss", head_dim=14, num_local_experts=5, num_experts_per_tok=3, sliding_window=9,
                       intermediate_size=24, pad_token_id=0)  # fmt: skip

DEEPSEEK_V3 = LLAMA | dict(
    model_type="deepseek_v3", num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
    moe_intermediate_size=24, first_k_dense_replace=1, kv_lora_rank=20, q_lora_rank=26, qk_rope_head_dim=8,
    qk_nope_head_dim=14, v_head_dim=10, rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=1.3))  # fmt: skip
DEEPSEEK_V2 = DEEPSEEK_V3 | dict(model_type="deepseek_v2", q_lora_rank=None, topk_method="greedy", n_group=1, topk_group=1,
                                 rope_parameters=None)  # fmt: skip
GLM4_MOE_LITE = DEEPSEEK_V3 | dict(model_type="glm4_moe_lite", n_group=1, topk_group=1, rope_parameters=None)
DELTA = dict(head_dim=16, layer_types=["linear_attention", "full_attention", "linear_attention"], linear_num_key_heads=2,
             linear_num_value_heads=6, linear_key_head_dim=10, linear_value_head_dim=14)  # fmt: skip
QWEN3_NEXT = LLAMA | DELTA | dict(model_type="qwen3_next", num_experts=7, num_experts_per_tok=3, moe_intermediate_size=24,
                                  shared_expert_intermediate_size=40)  # fmt: skip
QWEN3_5_MOE_TEXT = QWEN3_NEXT | dict(model_type="qwen3_5_moe_text")
QWEN3_5_TEXT = LLAMA | DELTA | dict(model_type="qwen3_5_text")
LFM2 = dict(model_type="lfm2", vocab_size=101, hidden_size=48, intermediate_size=88, num_hidden_layers=3, norm_eps=1e-5,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0,
            layer_types=["conv", "full_attention", "conv"])  # fmt: skip

MINICPM3 = LLAMA | dict(model_type="minicpm3", num_key_value_heads=4, kv_lora_rank=20, q_lora_rank=26, qk_rope_head_dim=8,
                        qk_nope_head_dim=14, v_head_dim=10, dim_model_base=32, scale_emb=3, tie_word_embeddings=True,
                        rope_parameters=LONGROPE | {"short_factor": [1.0, 1.1, 1.3, 1.5],
                                                    "long_factor": [1.0, 2.0, 4.0, 8.0]})  # fmt: skip

EYES = dict(depth=1, hidden_size=32, intermediate_size=37, num_heads=2, out_hidden_size=48)
SEEN = dict(image_token_id=901, video_token_id=902, vision_start_token_id=903, vision_end_token_id=904)
MROPE = {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 2, 2]}
QWEN3_5 = SEEN | dict(
    model_type="qwen3_5", text_config=QWEN3_5_TEXT | dict(layer_types=None, full_attention_interval=3, rope_parameters={
        "rope_type": "default", "rope_theta": 1e5, "mrope_section": [1, 1, 0], "mrope_interleaved": True,
        "partial_rotary_factor": 0.25}),
    vision_config=EYES)  # fmt: skip
GEMMA4_SEES = dict(
    model_type="gemma4", text_config=GEMMA4_EXPERTS, image_token_id=901, video_token_id=902, audio_token_id=903,
    vision_config=dict(hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2,
                       num_key_value_heads=2, head_dim=16, position_embedding_size=64))  # fmt: skip
MISTRAL3 = dict(model_type="mistral3", text_config=MISTRAL | dict(head_dim=14), image_token_index=901,
                tie_word_embeddings=False, vision_config=dict(
                    model_type="pixtral", hidden_size=32, intermediate_size=37, num_hidden_layers=1, head_dim=16,
                    num_attention_heads=2, image_size=28, patch_size=14))  # fmt: skip
LLAVA = dict(model_type="llava", text_config=LLAMA, image_token_index=901, tie_word_embeddings=False, vision_config=dict(
    model_type="clip_vision_model", hidden_size=32, intermediate_size=37, num_hidden_layers=3, num_attention_heads=2,
    image_size=28, patch_size=14, projection_dim=16))  # fmt: skip
MINISTRAL3_SEES = MISTRAL3 | dict(text_config=MINISTRAL3)
KIMI_K25 = dict(model_type="kimi_k25", text_config=DEEPSEEK_V3, tie_word_embeddings=False, vision_config=dict(
    hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2))  # fmt: skip
QWEN2_5_VL = SEEN | dict(
    model_type="qwen2_5_vl", text_config=LLAMA | dict(model_type="qwen2_5_vl_text", rope_parameters=MROPE),
    vision_config=EYES | dict(fullatt_block_indexes=[0]))  # fmt: skip
QWEN2_VL = SEEN | dict(
    model_type="qwen2_vl", text_config=LLAMA | dict(model_type="qwen2_vl_text", rope_parameters=MROPE),
    vision_config=dict(depth=1, embed_dim=32, hidden_size=48, num_heads=2, mlp_ratio=2))  # fmt: skip
QWEN3_VL = SEEN | dict(
    model_type="qwen3_vl", text_config=LLAMA | dict(model_type="qwen3_vl_text", head_dim=12, rope_parameters=MROPE),
    vision_config=EYES | dict(deepstack_visual_indexes=[0]))  # fmt: skip
QWEN3_VL_MOE = QWEN3_VL | dict(model_type="qwen3_vl_moe", text_config=QWEN3_MOE | dict(
    model_type="qwen3_vl_moe_text", head_dim=12, moe_intermediate_size=16, mlp_only_layers=[1],
    rope_parameters=MROPE))  # fmt: skip

CASES = {
    "llama-gqa": LLAMA,
    "llama-mha": LLAMA | dict(num_key_value_heads=4),
    "llama-mqa": LLAMA | dict(num_key_value_heads=1),
    "llama-tied": LLAMA | dict(tie_word_embeddings=True),
    "llama-odd": LLAMA | dict(vocab_size=257, hidden_size=60, intermediate_size=37, num_attention_heads=6,
                       num_key_value_heads=3),
    "llama-head-dim": LLAMA | dict(head_dim=22),
    "llama-attention-bias": LLAMA | dict(attention_bias=True),
    "llama-all-biases": LLAMA | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-gelu": LLAMA | dict(hidden_act="gelu"),
    "llama-linear": LLAMA | dict(rope_parameters=LINEAR),
    "llama-theta": LLAMA | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, head_dim=64),
    "llama-llama3": LLAMA | dict(rope_parameters=LLAMA3, head_dim=32),
    "llama-llama3-wide": LLAMA | dict(rope_parameters=LLAMA3 | dict(rope_theta=100.0, factor=32.0), head_dim=64),
    "llama-yarn": LLAMA | dict(rope_parameters=YARN, head_dim=32),
    "llama-yarn-untruncated": LLAMA | dict(rope_parameters=YARN | dict(truncate=False, beta_fast=8, beta_slow=0.5),
                                   head_dim=64),
    "llama-yarn-mscale": LLAMA | dict(rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=1.3)),
    "llama-yarn-attention-factor": LLAMA | dict(rope_parameters=YARN | dict(attention_factor=1.7)),
    "mistral": MISTRAL,
    "mistral-window": MISTRAL | dict(sliding_window=7),
    "mistral-window-1": MISTRAL | dict(sliding_window=1, num_key_value_heads=1),
    "mistral-window-16-mha": MISTRAL | dict(sliding_window=16, num_key_value_heads=4, tie_word_embeddings=True),
    "mistral-head-dim": MISTRAL | dict(head_dim=30, sliding_window=33),
    "mistral-yarn": MISTRAL | dict(rope_parameters=YARN, sliding_window=20),
    "qwen2": QWEN2,
    "qwen2-tied-yarn": QWEN2 | dict(tie_word_embeddings=True, rope_parameters=YARN),
    "qwen2-window-not-used": QWEN2 | dict(sliding_window=5, max_window_layers=1),
    "qwen2-window-upper": QWEN2 | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen2-layer-types": QWEN2 | dict(use_sliding_window=True, sliding_window=9, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"]),
    "qwen3": QWEN3,
    "qwen3-bias-window": QWEN3 | dict(attention_bias=True, use_sliding_window=True, sliding_window=6, max_window_layers=2),
    "qwen3-mqa-tied": QWEN3 | dict(num_key_value_heads=1, tie_word_embeddings=True, head_dim=16),
    "phi3": PHI3,
    "phi3-window-mha": PHI3 | dict(sliding_window=10, num_key_value_heads=4),
    "phi3-partial-tied": PHI3 | dict(tie_word_embeddings=True, rope_parameters={
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "phi3-longrope": PHI3 | dict(rope_parameters=LONGROPE, original_max_position_embeddings=64),
    "phi3-longrope-partial": PHI3 | dict(hidden_size=64, original_max_position_embeddings=64,
                                         rope_parameters=LONGROPE | {"partial_rotary_factor": 0.75}),
    "gemma": GEMMA,
    "gemma-mqa-untied": GEMMA | dict(num_key_value_heads=1, tie_word_embeddings=False, attention_bias=True),
    "gemma2": GEMMA2 | dict(attn_logit_softcapping=1.5, final_logit_softcapping=2.0),
    "gemma2-no-caps": GEMMA2 | dict(attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window=1),
    "gemma3": GEMMA3,
    "gemma3-caps": GEMMA3 | dict(attn_logit_softcapping=1.5, final_logit_softcapping=2.0, num_hidden_layers=2,
                                 layer_types=["full_attention", "sliding_attention"]),
    "gemma4_text": GEMMA4_SMALL,
    "gemma4_text-told": GEMMA4 | dict(hidden_size_per_layer_input=7, vocab_size_per_layer_input=101),
    # the reference has no shared keys without what layers are told
    "gemma4_text-shared": GEMMA4 | dict(num_kv_shared_layers=1, num_key_value_heads=4, hidden_size_per_layer_input=7,
                                        vocab_size_per_layer_input=101),
    "gemma4_text-experts": GEMMA4_EXPERTS,
    "gemma4_text-dense": GEMMA4 | dict(num_key_value_heads=4, tie_word_embeddings=False),
    "gemma4_text-values": GEMMA4 | dict(attention_k_eq_v=False, attention_bias=True, rope_parameters={
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.4, "rope_theta": 1e5, "factor": 2.0},
        "sliding_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "gemma4": GEMMA4_SEES,
    "olmo2": OLMO2,
    "olmo2-bias-mha": OLMO2 | dict(attention_bias=True, num_key_value_heads=4, tie_word_embeddings=True),
    "granite": GRANITE,
    "granite-biases-tied": GRANITE | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "smollm3": SMOLLM3,
    "smollm3-window": SMOLLM3 | dict(use_sliding_window=True, sliding_window=8, no_rope_layers=[0, 1, 0],
                                     attention_bias=True, tie_word_embeddings=False),
    "starcoder2": STARCODER2,
    "starcoder2-window": STARCODER2 | dict(sliding_window=9, use_bias=False, tie_word_embeddings=False),
    "gpt_neox": NEOX,
    "gpt_neox-sequential": NEOX | dict(use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
                                       rope_parameters={"rope_type": "default", "rope_theta": 1e5,
                                                        "partial_rotary_factor": 1.0}),
    "mixtral": MIXTRAL,
    "mixtral-window": MIXTRAL | dict(sliding_window=8, num_experts_per_tok=1),
    "mixtral-all": MIXTRAL | dict(num_local_experts=3, num_experts_per_tok=3, tie_word_embeddings=True),
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe-mixed": QWEN3_MOE | dict(mlp_only_layers=[1], norm_topk_prob=True, use_sliding_window=True,
                                        sliding_window=9),
    "qwen3_moe-sparse-step": QWEN3_MOE | dict(decoder_sparse_step=2, attention_bias=True, num_experts_per_tok=1),
    "olmoe": OLMOE,
    "olmoe-clip": OLMOE | dict(clip_qkv=0.4, norm_topk_prob=True),
    "olmo3": OLMO3,
    "olmo3-defaults": OLMO3 | dict(rope_parameters=None, num_key_value_heads=4, attention_bias=True),
    "seed_oss": SEED_OSS,
    "seed_oss-other-biases": SEED_OSS | dict(attention_bias=False, attention_out_bias=True, mlp_bias=True,
                                             tie_word_embeddings=True),
    "ministral": MINISTRAL,
    "ministral-window": MINISTRAL | dict(layer_types=None, num_key_value_heads=1),
    "ministral-yarn": MINISTRAL | dict(rope_parameters=YARN),
    "cwm": CWM,
    "cwm-plain": CWM | dict(rope_parameters=None, mlp_bias=True, num_hidden_layers=2),
    "exaone4": EXAONE4 | dict(rope_parameters=LLAMA3),
    "exaone4-layer-types": EXAONE4 | dict(sliding_window_pattern="LLG", head_dim=18, layer_types=[
        "sliding_attention", "full_attention", "full_attention"]),
    "exaone4-no-window": EXAONE4 | dict(sliding_window=None, layer_types=["full_attention"] * 3,
                                        tie_word_embeddings=True),
    "granitemoe": GRANITEMOE,
    "granitemoe-bias-tied": GRANITEMOE | dict(attention_bias=True, tie_word_embeddings=True, num_experts_per_tok=1),
    "granitemoehybrid": GRANITE4_H,
    "granitemoehybrid-attention": GRANITE4,
    "granitemoehybrid-attention-no-rope": GRANITE4 | dict(position_embedding_type=None, attention_bias=True,
                                                          tie_word_embeddings=True),
    "granitemoehybrid-groups": GRANITE4_H | dict(
        mamba_n_groups=2, mamba_d_conv=3, mamba_proj_bias=True, mamba_conv_bias=False, mamba_expand=1, mamba_d_head="auto"),
    "granitemoehybrid-experts": GRANITE4_H | dict(
        num_local_experts=5, num_experts_per_tok=3, intermediate_size=24, position_embedding_type="rope",
        tie_word_embeddings=False, layer_types=["linear_attention", "linear_attention", "full_attention"]),
    "stablelm": STABLELM,
    "stablelm-half": STABLELM | dict(use_qkv_bias=False, num_key_value_heads=4, rope_parameters={
        "rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.5}),
    "internlm3": INTERNLM3,
    "internlm3-dynamic": INTERNLM3 | dict(attention_bias=False, mlp_bias=False, rope_parameters={
        "rope_type": "dynamic", "rope_theta": 5e4, "factor": 6.0}),
    "glm": GLM,
    "glm-whole-heads": GLM | dict(attention_bias=False, tie_word_embeddings=True, rope_parameters={
        "rope_type": "linear", "factor": 2.0, "rope_theta": 1e5, "partial_rotary_factor": 1.0}),
    "glm4": GLM4,
    "glm4-mqa": GLM4 | dict(num_key_value_heads=1, head_dim=20, attention_bias=False),
    "ernie4_5": ERNIE4_5,
    "ernie4_5-untied": ERNIE4_5 | dict(use_bias=False, tie_word_embeddings=False, rope_parameters=LINEAR),
    "mistral3": MISTRAL3,
    "mistral3-window": MISTRAL3 | dict(text_config=MISTRAL | dict(sliding_window=8, rope_parameters=YARN)),
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen2_5_vl-window-tied": QWEN2_5_VL | dict(tie_word_embeddings=True, text_config=QWEN2_5_VL["text_config"] | dict(
        use_sliding_window=True, sliding_window=9, max_window_layers=1, rope_parameters=YARN | MROPE | {"rope_type": "yarn"})),
    "qwen2_vl": QWEN2_VL,
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl-bias-tied": QWEN3_VL | dict(tie_word_embeddings=True, text_config=QWEN3_VL["text_config"] | dict(
        attention_bias=True, rope_parameters=MROPE | {"mrope_interleaved": True})),
    "qwen3_vl_moe": QWEN3_VL_MOE,
    "qwen3_vl_moe-bias-tied": QWEN3_VL_MOE | dict(tie_word_embeddings=True, text_config=QWEN3_VL_MOE["text_config"] | dict(
        attention_bias=True, mlp_only_layers=None, decoder_sparse_step=2, rope_parameters=MROPE | {"mrope_interleaved": True})),
    "gpt_bigcode": GPT_BIGCODE,
    "gpt_bigcode-keys": GPT_BIGCODE | dict(multi_query=False, scale_attn_weights=False, n_inner=71, tie_word_embeddings=False),
    "gptj": GPTJ,
    "gptj-whole-heads-tied": GPTJ | dict(rotary_dim=12, n_inner=71, tie_word_embeddings=True, activation_function="relu"),
    "llava": LLAVA,
    "llava-tied": LLAVA | dict(text_config=LLAMA | dict(tie_word_embeddings=True, attention_bias=True)),
    "llava-mistral": LLAVA | dict(text_config=MISTRAL | dict(head_dim=14)),
    "llava-qwen2": LLAVA | dict(text_config=QWEN2 | dict(tie_word_embeddings=True)),
    "arcee": ARCEE,
    "arcee-biases-tied": ARCEE | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=YARN),
    "nemotron": NEMOTRON,
    "nemotron-biases": NEMOTRON | dict(attention_bias=True, mlp_bias=True, hidden_act="gelu", head_dim=14, rope_parameters={
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}),
    "nemotron_h": NEMOTRON_H,
    "nemotron_h-latent": NEMOTRON_H | dict(moe_latent_size=20, n_routed_experts=8, n_group=4, topk_group=2, n_groups=8,
                                           norm_topk_prob=False, conv_kernel=3),
    "nemotron_h-dense": NEMOTRON_H | dict(layers_block_type=None, hybrid_override_pattern="-M*-", use_bias=True, n_groups=1,
                                          use_conv_bias=False, mlp_bias=True, mlp_hidden_act="gelu"),
    "ministral3": MINISTRAL3,
    "ministral3-window-tied": MINISTRAL3 | dict(sliding_window=9, tie_word_embeddings=True),
    "hunyuan_v1_dense": HUNYUAN,
    "hunyuan_v1_dense-alpha": HUNYUAN | dict(attention_bias=True, tie_word_embeddings=True, rope_parameters={
        "rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0}),
    "cohere": COHERE,
    "cohere-bias-untied": COHERE | dict(attention_bias=True, tie_word_embeddings=False, logit_scale=0.7),
    "cohere2": COHERE2,
    "cohere2-layer-types": COHERE2 | dict(sliding_window_pattern=4, attention_bias=True, layer_types=[
        "full_attention", "sliding_attention", "sliding_attention"]),
    "phi": PHI,
    "phi-grouped": PHI | dict(num_key_value_heads=2, rope_parameters={
        "rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 1.0}),
    "qwen2_moe": QWEN2_MOE,
    "qwen2_moe-mixed": QWEN2_MOE | dict(mlp_only_layers=[1], norm_topk_prob=True, use_sliding_window=True, sliding_window=9,
                                        qkv_bias=False, tie_word_embeddings=True, max_window_layers=2),
    "qwen2_moe-sparse-step": QWEN2_MOE | dict(decoder_sparse_step=2, num_experts_per_tok=1),
    "glm4_moe": GLM4_MOE,
    "glm4_moe-one-group": GLM4_MOE | dict(n_group=1, topk_group=1, use_qk_norm=True, attention_bias=True,
                                          norm_topk_prob=False, first_k_dense_replace=2),
    "dots1": DOTS1,
    "dots1-groups": DOTS1 | dict(n_routed_experts=6, n_group=3, topk_group=2, norm_topk_prob=True, attention_bias=True,
                                 first_k_dense_replace=0, routed_scaling_factor=2.5, sliding_window=None),
    "ernie4_5_moe": ERNIE4_5_MOE,
    "ernie4_5_moe-between": ERNIE4_5_MOE | dict(use_bias=False, tie_word_embeddings=False, num_hidden_layers=5,
                                                moe_layer_start_index=1, moe_layer_end_index=3, moe_layer_interval=2,
                                                moe_num_shared_experts=0, moe_norm_min=0.5),
    "minimax_m2": MINIMAX_M2,
    "minimax_m2-whole-heads": MINIMAX_M2 | dict(rotary_dim=None, tie_word_embeddings=True, num_experts_per_tok=1),
    "gpt_oss": GPT_OSS,
    "gpt_oss-yarn": GPT_OSS | dict(attention_bias=False, tie_word_embeddings=True, rope_parameters=YARN | dict(truncate=False),
                                   layer_types=["full_attention", "sliding_attention", "sliding_attention"]),
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v3-halves": DEEPSEEK_V3 | dict(rope_interleave=False, q_lora_rank=None, rope_parameters=None,
                                             tie_word_embeddings=True),
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v2-groups": DEEPSEEK_V2 | dict(topk_method="group_limited_greedy", n_group=4, topk_group=2, q_lora_rank=26,
                                             routed_scaling_factor=3.0, rope_parameters=YARN | dict(
                                                 mscale=0.707, mscale_all_dim=0.707)),
    "glm4_moe_lite": GLM4_MOE_LITE,
    "qwen3_next": QWEN3_NEXT,
    "qwen3_next-dense-tied": QWEN3_NEXT | dict(mlp_only_layers=[0, 2], norm_topk_prob=False, tie_word_embeddings=True,
                                               linear_num_value_heads=2, linear_conv_kernel_dim=3),
    "qwen3_5_text": QWEN3_5_TEXT,
    "qwen3_5": QWEN3_5,
    "qwen3_5_moe_text": QWEN3_5_MOE_TEXT,
    "qwen3_5_moe": QWEN3_5 | dict(model_type="qwen3_5_moe", text_config=QWEN3_5_MOE_TEXT),
    "lfm2": LFM2 | dict(conv_bias=True, conv_L_cache=5),
    "lfm2-adjusted": LFM2 | dict(block_multiple_of=16, block_ffn_dim_multiplier=1.3, tie_word_embeddings=False),
    "minicpm3": MINICPM3,
    "minicpm3-plain": MINICPM3 | dict(q_lora_rank=None, v_head_dim=None, scale_depth=None, dim_model_base=None,
                                      rope_parameters=None, tie_word_embeddings=False),
    "kimi_k25": KIMI_K25,
    "kimi_k25-tied": KIMI_K25 | dict(tie_word_embeddings=True, text_config=DEEPSEEK_V3 | dict(n_group=1, topk_group=1)),
    "mistral3-ministral3": MINISTRAL3_SEES,
    "gpt2": GPT2,
    "gpt2-untied": GPT2 | dict(tie_word_embeddings=False),
    "gpt2-inner": GPT2 | dict(n_inner=71, n_head=3, vocab_size=130),
    "gpt2-one-head": GPT2 | dict(n_head=1, n_layer=1),
    "gpt2-relu": GPT2 | dict(activation_function="relu"),
    "gpt2-scales": GPT2 | dict(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
}  # fmt: skip


def kind(config):
    """What layers there are, and what of a key is kept and turned; sizes aside. Of one kind, cached steps are the same text."""
    heads = config.num_kv_heads == 1, config.num_kv_heads == config.num_heads
    return heads, config.rotary_dim is None, re.sub(r"\d[\d.e+-]*", "n", repr(config.layers))


def first_of_each_kind(cases):
    """Names of those of which tokens are compared, beside the logits of all."""
    found: dict = {}
    for name, settings in cases.items():
        found.setdefault((settings["model_type"], kind(nano.read_config(settings)[0])), name)
    return frozenset(found.values())


WRITTEN = first_of_each_kind(CASES)
# model types whose text the reference has in another class
SEES = {"gemma4", "mistral3", "llava", "kimi_k25", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5",
        "qwen3_5_moe"}  # fmt: skip

ONE_OF_EACH = {settings["model_type"]: name for name, settings in reversed(CASES.items())}
# of those with mathematics of their own; others have a config reader and a table of names of their own, and the text of these
OWN = {family: ONE_OF_EACH[family] for family in [*CONFIG_JSON, *FURTHER]}


def of_reference(model_type):
    """The class of the reference that loads models of this type."""
    import transformers

    return transformers.AutoModelForImageTextToText if model_type in SEES else transformers.AutoModelForCausalLM


def write_reference(folder, settings, seed=0):
    """A random checkpoint on disk, and the reference model that it holds."""
    import transformers

    config = transformers.AutoConfig.for_model(**settings, bos_token_id=1, eos_token_id=2)
    reference = random_reference(config, settings["model_type"], seed)
    publish(reference, folder)
    return reference


def publish(reference, folder):
    """save_pretrained, with the names and shapes that published files have.

    Where layers of what sees are called blocks, the reference's way back to published names calls those of the text so too; and
    of experts that may lie either way it writes those that it holds.
    """
    from safetensors.torch import load_file, save_file

    reference.save_pretrained(folder)
    text, model_type = "language_model.model.", reference.config.model_type
    if model_type in ("kimi_k25", "qwen3_vl_moe"):
        tensors = {
            name.replace(f"{text}blocks.", f"{text}layers.") if model_type == "kimi_k25" else name:
            array.mT.contiguous() if model_type == "qwen3_vl_moe" and ".experts." in name else array
            for name, array in load_file(folder / "model.safetensors").items()
        }  # fmt: skip
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def random_reference(config, model_type, seed):
    """A model of the reference with random numbers everywhere, biases and norm scales included."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # models this small only make a second thread wait
    auto = of_reference(model_type)
    reference = auto.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 1:
                base = 1.0 if "norm" in name.split(".")[-2] or ".ln_" in f".{name}" else 0.0
                base = 0.0 if name.endswith("bias") else base
                parameter.copy_(base + 0.3 * torch.randn_like(parameter))
                # scores are not divided by sqrt(H) there: of others softmax takes one key, and both lose digits of float32
                if model_type.startswith("gemma4") and name.endswith("q_norm.weight"):
                    parameter.mul_(parameter.numel() ** -0.5)
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        for name, buffer in reference.named_buffers():
            if name.endswith("correction_bias"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            if name.endswith("layer_scalar"):
                buffer.copy_(1.0 + 0.3 * torch.randn_like(buffer))
    return reference


def reference_and_ours(name, tmp_path_factory):
    """The reference, and our model loaded from its files."""
    folder = tmp_path_factory.mktemp(name)
    reference = write_reference(folder, CASES[name], seed=len(name))
    return reference, nano.load(folder, dtype="float32")


def reference_logits(reference, tokens):
    import torch

    with torch.no_grad():
        return reference(torch.from_numpy(np.asarray(tokens, np.int64))).logits.float().numpy()


def our_logits(model, tokens, capacity=None):
    cache = nano.init_cache(model.config, tokens.shape[0], capacity or tokens.shape[1], jnp.float32)
    return np.asarray(forward(model.params, tokens, cache, config=model.config)[0])


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens(name, tmp_path_factory):
    """Logits past every window and past every original_max_position_embeddings of CASES. And of the first case of each kind of
    layers 64 tokens of three prompts of different lengths, beside each other here and one by one in the reference.
    """
    pair = reference_and_ours(name, tmp_path_factory)
    check_logits(*pair)
    if name in WRITTEN:
        check_greedy_tokens(*pair, 64)


def check_logits(reference, model):
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 150), dtype=np.int32)
    expected = reference_logits(reference, tokens)
    assert np.abs(expected).max() > 0.5  # logits of nothing would agree as well
    agree(our_logits(model, tokens), expected, 1e-4)


@pytest.mark.as_users
@pytest.mark.parametrize("name", OWN.values(), ids=OWN)
def test_compiled_as_for_users(name, tmp_path_factory):
    """Answers alone, in the programs that users have, compiled with everything on: each takes seconds."""
    check_greedy_tokens(*reference_and_ours(name, tmp_path_factory), 16)


def check_greedy_tokens(reference, model, count):
    """Those of three prompts that are answered beside each other."""
    rng = np.random.default_rng(2)
    prompts = [rng.integers(3, model.config.vocab_size, size).tolist() for size in (1, 5, 41)]
    answers = nano.generate(model, prompts, max_new_tokens=count, sampling=nano.Sampling(temperature=0.0))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, logits = answer.token_ids, answered(reference, model, prompt, answer.token_ids)
        assert ids == logits.argmax(-1).tolist()
        agree(
            answer.logprobs,
            np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids)), ids],
            1e-4,
            size=np.abs(logits).max(),
        )
        assert 2 not in ids[:-1] and (len(ids) == count or ids[-1] == 2)  # its end of text


def answered(reference, model, prompt, ids):
    """The reference's logits of each token of an answer.  -> [n V]

    Its greedy answer is the one whose every token is its first choice after those before: one pass tells, and with longrope,
    which reads a text that outgrew its original length otherwise, one for each side of that.
    """
    text, switch = prompt + ids[:-1], model.config.switch_length
    logits = reference_logits(reference, [text])[0]
    if switch is not None:
        logits[:switch] = reference_logits(reference, [text[:switch]])[0]
    return logits[len(prompt) - 1 :]


def chosen(reference, model, prompt, ids):
    """The reference's first choices."""
    return answered(reference, model, prompt, ids).argmax(-1).tolist()


def test_both_dialects_of_config_json(tmp_path):
    """A checkpoint of transformers 4 says rope_theta and rope_scaling: the same model."""
    write_reference(tmp_path, LLAMA | dict(rope_parameters=LLAMA3))
    new = nano.load(tmp_path, dtype="float32")
    values = json.loads((tmp_path / "config.json").read_text())
    rope = values.pop("rope_parameters")
    values |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": values.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert nano.load(tmp_path, dtype="float32").config == new.config
    assert new.config.layers[0].rope.scaling is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_checkpoints(tmp_path, dtype):
    """The stored 16-bit weights, widened exactly."""
    import torch
    import transformers

    write_reference(tmp_path, LLAMA).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model = nano.load(tmp_path, dtype="float32")
    tokens = np.arange(30, dtype=np.int32)[None]
    agree(our_logits(model, tokens), reference_logits(reference, tokens), 1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_bfloat16_is_as_near_to_float32_as_the_references(tmp_path, name):
    """Run in bfloat16, logits stay within twice the reference's own distance from its float32 ones."""
    import torch

    settings = dict(CASES[name])
    if "moe_intermediate_size" in settings:
        settings["moe_intermediate_size"] = 24  # the reference multiplies 16-bit experts by multiples of 8 only
    publish(write_reference(tmp_path, settings, seed=len(name)).to(torch.bfloat16), tmp_path)
    tokens = np.random.default_rng(1).integers(0, 90, (4, 100), dtype=np.int32)
    exact, rounded = (
        reference_logits(of_reference(settings["model_type"]).from_pretrained(tmp_path, dtype=dtype), tokens)
        for dtype in (torch.float32, torch.bfloat16)
    )
    model = nano.load(tmp_path, dtype="bfloat16")
    ours, theirs = (np.abs(logits - exact) for logits in (our_logits(model, tokens), rounded))
    assert theirs.max() > 0
    # a token between two experts may go to the other one by the last bit, and is then off by anything in both
    assert model.config.num_experts or ours.max() <= 2 * theirs.max()
    assert ours.mean() <= 2 * theirs.mean()


def test_every_family_has_a_case():
    assert {FAMILIES[model_type] for model_type in ONE_OF_EACH} == set(FAMILIES.values())


@pytest.mark.parametrize("name", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_the_names_that_the_reference_holds_are_read_as_those_that_it_publishes(tmp_path, name):
    """All experts of a layer in one tensor, the text's part of a model for images under another prefix."""
    reference = write_reference(tmp_path / "published", CASES[name])
    reference.save_pretrained(tmp_path / "held", save_original_format=False)
    published, held = (nano.load(tmp_path / form, dtype="float32").params for form in ("published", "held"))
    jax.tree.map(np.testing.assert_array_equal, held, published)


def test_sharded_checkpoint(tmp_path):
    """Several files behind an index."""
    reference = write_reference(tmp_path / "one", LLAMA)
    reference.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    tokens = np.arange(20, dtype=np.int32)[None]
    expected = our_logits(nano.load(tmp_path / "one"), tokens)
    np.testing.assert_array_equal(our_logits(nano.load(tmp_path / "many"), tokens), expected)


@pytest.mark.parametrize("settings", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_checkpoint_without_prefix(tmp_path, settings):
    """The base model's own names, "h.0..." instead of "transformer.h.0...", with a head beside them."""
    from safetensors.numpy import load_file, save_file

    write_reference(tmp_path, settings)
    tokens = np.arange(20, dtype=np.int32)[None]
    expected = our_logits(nano.load(tmp_path), tokens)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer.").removeprefix("model."): array for name, array in tensors.items()}
    assert bare.keys() != tensors.keys()
    if settings is GPT2:
        bare["h.0.attn.bias"] = np.tril(np.ones((1, 1, 200, 200), np.float32))
        bare["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(bare, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(our_logits(nano.load(tmp_path), tokens), expected)


SETTINGS = [
    dict(typical_p=0.4),
    dict(typical_p=0.9, temperature=0.5, top_k=12),
    dict(no_repeat_ngram_size=1),
    dict(no_repeat_ngram_size=2, repetition_penalty=1.3),
    dict(no_repeat_ngram_size=3, min_new_tokens=9),
    dict(min_new_tokens=6, top_p=0.7),  # no longer: the answer has 6
    dict(temperature=0.7),
    dict(top_k=5),
    dict(top_p=0.6),
    dict(min_p=0.2),
    dict(repetition_penalty=1.8),
    dict(logit_bias={3: 4.0, 10: -2.5}),
    dict(temperature=1.4, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=0.7, logit_bias={0: 1.5, 7: -3.0}),
    dict(temperature=0.3, top_k=1),
    dict(top_p=1e-6),
    dict(temperature=2.0, top_k=60, top_p=0.99, min_p=0.3),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_filtered_distribution(settings):
    """What is left to draw from, with which probabilities: transformers' processors in transformers' order."""
    import torch
    import transformers

    rng = np.random.default_rng(3)
    V, B = 64, 4
    logits = (3 * rng.standard_normal((B, V))).astype(np.float32)
    prompt = rng.integers(0, 4, (B, 9)).astype(np.int32)  # few ids, so that runs of them come again
    answer = rng.integers(0, 4, (B, 6)).astype(np.int32)
    past = smp.read(smp.no_history(B, V, 20), jnp.asarray(prompt), jnp.full(B, 9))
    for step in range(6):
        past = smp.remember(past, jnp.asarray(answer[:, step]))
    ours = smp.shape_logits(jnp.asarray(logits), nano.Sampling(**settings).rows(B, V, ends=[2, 60]), past)

    # the reference builds its own list, so the order is its own too
    tiny = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_embd=8, n_layer=1, n_head=1))
    theirs = dict(settings)
    bias = theirs.pop("logit_bias", None)
    config = transformers.GenerationConfig(
        do_sample=True, **({"top_k": 0, "top_p": 1.0} | theirs),
        sequence_bias=[[[token], value] for token, value in bias.items()] if bias else None,
    )  # fmt: skip
    config._eos_token_tensor = torch.tensor([2, 60])
    ids = torch.from_numpy(np.concatenate([prompt, answer], axis=1).astype(np.int64))
    processors = tiny._get_logits_processor(
        config, prompt.shape[1], logits_processor=transformers.LogitsProcessorList()
    )
    expected = torch.softmax(processors(ids, torch.from_numpy(logits)), dim=-1).numpy()
    np.testing.assert_array_equal(np.asarray(jax.nn.softmax(ours)) > 0, expected > 0)
    agree(jax.nn.softmax(ours), expected)
