"""The keys of config.json that nobody has to read, each with its reason, and the names that may not go unread.

A key that no family reads is one of four things:
  INERT     known to change nothing that a decoder computes from given weights: silent
  LISTED    unknown to the reference, though its name speaks of computing: named in the warning, with its reason
  refused   any other whose name speaks of computing, or of quantised weights
  ignored   the rest, which the reference does not know either: named in the warning
The reference is transformers in the version of constraints.txt. tests/reference_keys.json has every key that it reads for each
family, and the tests show that each is read here, inert or refused.
"""

from __future__ import annotations

import re
from typing import Any

IMAGES = """
    vision_config image_token_id video_token_id vision_token_id vision_start_token_id vision_end_token_id"""

GUESSES = "layers that guess further tokens"
DEEPSEEK_V3 = {
    "moe_layer_freq": "first_k_dense_replace says where experts are",
    "scoring_func": "a sigmoid is what is computed",
    "topk_method": "experts are always corrected",
}
STATES = "states are always in float32"

# {family, or "" for all: {reason: names}}
INERT = {
    "": {
        "where the file comes from": """
            _name_or_path name_or_path _commit_hash architectures transformers_version tokenizer_class name auto_map
            custom_pipeline custom_pipelines finetuning_task task_specific_params unsloth_version unsloth_fixed
            transformers.js_config is_llama_config _from_model_config""",
        "the caller chooses the dtype": "dtype torch_dtype use_bfloat16",
        "training": """
            initializer_range initializer_factor gradient_checkpointing router_jitter_noise output_router_logits
            pretraining_tp selective_checkpoint_enabled sequence_parallel_enabled""",
        "classifiers have labels, a decoder has none": """
            id2label label2id num_labels _num_labels problem_type summary_type summary_use_proj summary_activation
            summary_proj_to_labels""",
        "what the reference's functions return, not its logits": """
            return_dict use_return_dict output_attentions output_hidden_states output_cross_attentions output_past
            tie_last_hidden_states""",
        "how another program runs it": """
            use_cache cache_implementation torchscript chunk_size_feed_forward _attn_implementation attn_implementation
            _attn_implementation_autoset _attn_implementation_internal experts_implementation
            _experts_implementation_internal use_flash_attention use_flash_attention_2 use_flash_attn
            _flash_attn_2_enabled tensor_parallel_size reorder_and_upcast_attn""",
        "softmax is in float32 here": "attention_softmax_in_fp32 scale_attention_softmax_in_fp32",
        "where generate() begins and ends; read by another door": """
            bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id""",
        "what generate() does by default, which is generation_config.json's to say": """
            do_sample temperature top_k top_p typical_p repetition_penalty length_penalty num_beams num_beam_groups
            num_return_sequences max_length max_new_tokens min_length no_repeat_ngram_size early_stopping
            diversity_penalty encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens
            forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
            return_dict_in_generate output_scores""",
        "what the tokenizer may be given": "model_max_length max_sequence_length predict_special_tokens",
        "a decoder is one without being told": "is_decoder",
    },
    "gpt2": {"an older name of n_positions, written beside it": "n_ctx"},
    "gpt_bigcode": {
        "an older name of n_positions, written beside it": "n_ctx",
        "how another program runs it": """
            inference_runner max_batch_size pad_key_length pre_allocate_kv_cache runner_max_sequence_length
            validate_runner_input""",
    },
    "gptj": {"an older name of n_positions, written beside it": "n_ctx"},
    "llava": {
        "what sees images": """
            vision_config image_token_index image_token_id image_seq_length projector_hidden_act
            multimodal_projector_bias vision_feature_layer vision_feature_select_strategy ignore_index""",
        "text_config has the text's": "vocab_size",
    },
    "gemma2": {"hidden_activation is what is computed": "hidden_act"},
    "gemma3_text": {
        "hidden_activation is what is computed": "hidden_act",
        "the reference reads it and does nothing with it": "attn_logit_softcapping",
    },
    "gemma3": {
        "what sees images": """
            vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index boi_token_id
            eoi_token_id image_token_id""",
    },
    "gemma4": {
        "what sees and hears": """
            vision_config audio_config image_token_id video_token_id audio_token_id boi_token_id eoi_token_id boa_token_id
            eoa_token_id eoa_token_index vision_soft_tokens_per_image""",
    },
    "mistral3": {
        "what sees images": """
            vision_config image_token_index image_token_id projector_hidden_act multimodal_projector_bias
            spatial_merge_size vision_feature_layer""",
    },
    "qwen2_vl": {"what sees images": IMAGES},
    "qwen2_5_vl": {"what sees images": IMAGES},
    "qwen3_vl": {"what sees images": IMAGES},
    "qwen3_vl_moe": {"what sees images": IMAGES},
    "qwen3_next": {GUESSES: "mtp_num_hidden_layers mtp_use_dedicated_embeddings", STATES: "mamba_ssm_dtype"},
    "qwen3_5": {"what sees images": IMAGES},
    "qwen3_5_moe": {"what sees images": IMAGES},
    "qwen3_5_moe_text": {
        GUESSES: "mtp_num_hidden_layers mtp_use_dedicated_embeddings",
        STATES: "mamba_ssm_dtype",
        "every layer has experts": "mlp_only_layers",
    },
    "qwen3_5_text": {
        GUESSES: "mtp_num_hidden_layers mtp_use_dedicated_embeddings",
        STATES: "mamba_ssm_dtype",
        "there are no experts": "mlp_only_layers",
    },
    "granitemoehybrid": {
        "how many tokens another program takes together": "mamba_chunk_size",
        "the only one that there is": "normalization_function",
        "training": "init_method",
    },
    "nemotron_h": {
        GUESSES: "num_nextn_predict_layers mtp_layers_block_type mtp_hybrid_override_pattern",
        STATES: "mamba_ssm_cache_dtype",
        "how many tokens another program takes together": "chunk_size mamba_chunk_size",
        "how weights were made": """
            rescale_prenorm_residual time_step_min time_step_max time_step_floor time_step_rank mamba_dt_min mamba_dt_max
            mamba_dt_init_floor""",
        "how another program runs it": "use_mamba_kernels moe_shared_expert_overlap num_logits_to_keep",
        "mamba_num_heads and mamba_head_dim are used": "expand mamba_expand",
        "layer_norm_epsilon is used": "norm_eps rms_norm_eps",
    },
    "glm4_moe": {GUESSES: "num_nextn_predict_layers num_mtp_layers"},
    "glm4_moe_lite": {GUESSES: "num_nextn_predict_layers num_mtp_layers"},
    "deepseek_v2": {GUESSES: "num_nextn_predict_layers"},
    "deepseek_v3": {GUESSES: "num_nextn_predict_layers num_mtp_layers"},
    "kimi_k2": {GUESSES: "num_nextn_predict_layers num_mtp_layers"},
    "kimi_k25": {
        "what sees images": f"""{IMAGES} projection_hidden_size projection_layer_norm_eps media_placeholder_token_id
            use_unified_vision_chunk""",
    },
    "dots1": {GUESSES: "num_nextn_predict_layers"},
    "hunyuan_v1_dense": {"where generate() ends": "eod_token_id"},
    "smollm3": {"no_rope_layers and layer_types say where": "max_window_layers"},
    "qwen3_moe": {"the window, where used, is in every layer": "max_window_layers"},
}  # fmt: skip

# {family: {key: reason}}: in published files, and the reference knows none of them
LISTED = {
    "rope": {"finetuned": "how the model was made"},  # in rope_scaling, where every other name speaks of rope
    "starcoder2": {
        "activation_function": "hidden_act is computed",
        "layer_norm_epsilon": "norm_epsilon is used",
        "rms_norm_eps": "norm_epsilon is used",
        "scale_attn_weights": "scores are always scaled",
    },
    "gemma2": {"sliding_window_size": "sliding_window is used"},
    "phi3": {
        "full_attn_mod": "sliding_window is used",
        "interpolate_factor": "rope_scaling is used",
    },
    "stablelm": {
        "norm_eps": "layer_norm_eps is used",
        "rope_pct": "partial_rotary_factor is used",
        "rotary_scaling_factor": "rope_scaling is used",
    },
    "qwen2": {"dual_chunk_attention_config": "it changes texts longer than its chunk_size only"},
    "qwen3_moe": {"use_qk_norm": "queries and keys are always normalised"},
    "hunyuan_v1_dense": {
        "attention_head_dim": "head_dim is used",
        "cla_share_factor": "no layer shares another's cache",
        "mask_init_id": "a token",
        "norm_type": "it is always RMS norm",
        "use_qk_norm": "queries and keys are always normalised",
        "use_rotary_pos_emb": "they are always rotated",
    },
    "cohere2": {
        "layer_switch": "sliding_window_pattern is used",
        "order_of_interleaved_layers": "the last of each few layers has no window",
        "position_embedding_type": "pairs of neighbours are rotated",
        "rotary_pct": "whole heads are rotated",
        "use_embedding_sharing": "tie_word_embeddings is used",
        "use_gated_activation": "there is always a gate",
        "use_parallel_embedding": "how another program divides it",
    },
    "ernie4_5_moe": {
        "moe_capacity": "no token is left out",
        "moe_gate": "a softmax is what is computed",
        "moe_use_aux_free": "the correction is always read",
    },
    "glm4_moe": {"scoring_func": "a sigmoid is what is computed", "topk_method": "experts are always corrected"},
    "dots1": {"scoring_func": "a sigmoid is what is computed", "topk_method": "experts are always corrected"},
    "deepseek_v2": {
        "moe_layer_freq": "first_k_dense_replace says where experts are",
        "scoring_func": "a softmax is what is computed",
    },
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3,
    "glm4_moe_lite": {
        "scoring_func": "a sigmoid is what is computed",
        "topk_method": "experts are always corrected",
    },
    "gpt_oss": {
        "experts_per_token": "num_experts_per_tok is used",
        "initial_context_length": "what rope_scaling says is used",
    },
    "minimax_m2": {
        "attn_type_list": "every layer's attention is softmax",
        "mtp_transformer_layers": "layers that guess further tokens",
        "num_mtp_modules": "layers that guess further tokens",
        "use_mtp": "layers that guess further tokens",
        "qk_norm_type": "all heads of a token together",
        "scoring_func": "a sigmoid is what is computed",
        "use_qk_norm": "queries and keys are always normalised",
        "use_routing_bias": "experts are always corrected",
    },
}  # fmt: skip

NAMES = {group: frozenset(" ".join(names.values()).split()) for group, names in INERT.items()}
DROPOUT_AND_LOSSES = re.compile(r"dropout|pdrop|drop_path|droppath|(^|_)(aux_)?loss(_|$)|z_loss")
QUANTISED = re.compile(r"quant|^compression_config$|(^|_)w?bits?$")
# Anywhere in a name, or as one of its words
SPEAKS = re.compile(
    r"rope|rotary|attn|attention|window|sliding|scal(e|ing)|multiplier|norm|expert|softcap|logit|softmax|activation|alibi"
    r"|mask|causal|residual|position|embed|hidden|layer|head|bias|theta|freq|factor|epsilon|swiglu|compress|chunk|adapter|lora"
    r"|(^|_)(caps?|capping|moe|ln|q|k|v|qk|kv|qkv|query|queries|keys?|values?|mlp|ffn|act|eps|gates?|gated|router?|routing|routed"
    r"|mult|mup|embd|emb|dim|depth|width|clip|limit|conv|mamba|ssm|state|ntk|logn|topk|groups?|shared?|sharing|mtp|nextn|tie[ds]?"
    r"|vision|text_config|text_encoder|encoder|decoder|generator)(_|$)"
)


def is_inert(family: str, key: str) -> bool:
    """Whether a key is known to change nothing."""
    return key in NAMES[""] or key in NAMES.get(family, ()) or DROPOUT_AND_LOSSES.search(key) is not None


def switches_nothing_on(value: Any) -> bool:
    """null, false, 0 and empty."""
    return value in (None, False, "", [], {})


def why_ignored(family: str, key: str) -> str | None:
    """The reason of a key that is listed, "" for one whose name speaks of nothing that is computed, None for any other."""
    listed = LISTED.get(family, {})
    if key in listed:
        return listed[key]
    return None if family == "rope" or SPEAKS.search(key.lower()) else ""
