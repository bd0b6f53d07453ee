"""config.json -> ModelConfig, in both dialects: what published files say, what is refused, and that tables fill layouts."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from models import COMPOSITE, CONFIG_JSON, FURTHER, GPT2, LLAMA, MISTRAL, RELATED

import nanollm_jax as nano
from nanollm_jax import families, params
from nanollm_jax.errors import ConfigError
from nanollm_jax.families import FAMILIES
from nanollm_jax.kinds import LayerConfig
from nanollm_jax.ropes import LinearScaling, Llama3Scaling, Rope, YarnScaling
from nanollm_jax.weights.rows import rearrange, source_shape, stored_shape

# What Hugging Face's files say, as they lie on the hub but for labels and comments.
HUB = {
    "gpt2": dict(
        activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=50256, embd_pdrop=0.1,
        eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05, model_type="gpt2", n_ctx=1024, n_embd=768,
        n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1,
        summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, vocab_size=50257,
    ),
    "llama-1": dict(
        architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
        initializer_range=0.02, intermediate_size=11008, max_position_embeddings=2048, max_sequence_length=2048,
        model_type="llama", num_attention_heads=32, num_hidden_layers=32, pad_token_id=0, rms_norm_eps=1e-06,
        tie_word_embeddings=False, torch_dtype="float16", transformers_version="4.28.0.dev0", use_cache=True, vocab_size=32000,
    ),
    "llama-2-7b": dict(
        _name_or_path="meta-llama/Llama-2-7b-hf", architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2,
        hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=11008, max_position_embeddings=4096,
        model_type="llama", num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1,
        rms_norm_eps=1e-05, rope_scaling=None, tie_word_embeddings=False, torch_dtype="float16",
        transformers_version="4.31.0.dev0", use_cache=True, vocab_size=32000,
    ),
    "llama-3-8b": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
        eos_token_id=128001, hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
        max_position_embeddings=8192, model_type="llama", num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
        pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=500000.0, tie_word_embeddings=False,
        torch_dtype="bfloat16", transformers_version="4.40.0.dev0", use_cache=True, vocab_size=128256,
    ),
    "llama-3.1-8b-instruct": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
        eos_token_id=[128001, 128008, 128009], hidden_act="silu", hidden_size=4096, initializer_range=0.02,
        intermediate_size=14336, max_position_embeddings=131072, mlp_bias=False, model_type="llama", num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05,
        rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192,
                          rope_type="llama3"),
        rope_theta=500000.0, tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.42.3", use_cache=True,
        vocab_size=128256,
    ),
    "llama-3.2-1b": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
        eos_token_id=128001, head_dim=64, hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=8192,
        max_position_embeddings=131072, mlp_bias=False, model_type="llama", num_attention_heads=32, num_hidden_layers=16,
        num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05,
        rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192,
                          rope_type="llama3"),
        rope_theta=500000.0, tie_word_embeddings=True, torch_dtype="bfloat16", transformers_version="4.45.0.dev0",
        use_cache=True, vocab_size=128256,
    ),
    "mistral-7b-v0.1": dict(
        architectures=["MistralForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
        initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768, model_type="mistral",
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0,
        sliding_window=4096, tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.34.0.dev0",
        use_cache=True, vocab_size=32000,
    ),
    "mistral-7b-instruct-v0.3": dict(
        architectures=["MistralForCausalLM"], attention_dropout=0.0, bos_token_id=1, eos_token_id=2, hidden_act="silu",
        hidden_size=4096, initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768, model_type="mistral",
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=1000000.0,
        sliding_window=None, tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.42.0.dev0",
        use_cache=True, vocab_size=32768,
    ),
    "mistral-nemo": dict(
        architectures=["MistralForCausalLM"], attention_dropout=0.0, bos_token_id=1, eos_token_id=2, head_dim=128,
        hidden_act="silu", hidden_size=5120, initializer_range=0.02, intermediate_size=14336, max_position_embeddings=131072,
        model_type="mistral", num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=8, rms_norm_eps=1e-05,
        rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False, torch_dtype="bfloat16",
        transformers_version="4.43.0.dev0", use_cache=True, vocab_size=131072,
    ),
}  # fmt: skip
HUB |= {
    "gpt2-medium": HUB["gpt2"] | dict(n_embd=1024, n_head=16, n_layer=24, n_special=0, predict_special_tokens=True),
    "gpt2-xl": HUB["gpt2"] | dict(n_embd=1600, n_head=25, n_layer=48, output_past=True),
    "distilgpt2": HUB["gpt2"] | dict(_num_labels=1, n_layer=6, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}),
    "codellama-7b": HUB["llama-2-7b"] | dict(max_position_embeddings=16384, rope_theta=1000000, vocab_size=32016),
    "tinyllama": HUB["llama-2-7b"] | dict(hidden_size=2048, intermediate_size=5632, max_position_embeddings=2048,
                                          num_hidden_layers=22, num_key_value_heads=4),
    "smollm-135m": HUB["llama-3-8b"] | dict(
        bos_token_id=0, eos_token_id=0, hidden_size=576, intermediate_size=1536, max_position_embeddings=2048, mlp_bias=False,
        num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3, rope_theta=10000.0, tie_word_embeddings=True,
        vocab_size=49152),
}  # fmt: skip
HUB["smollm2-135m"] = HUB["smollm-135m"] | {
    "max_position_embeddings": 8192, "rope_theta": 100000, "is_llama_config": True, "rope_interleaved": False,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
}  # fmt: skip

# V, D, L, N, K, H, F, P, tied, theta, window, parameters
MEANT = {
    "gpt2": (50257, 768, 12, 12, 12, 64, 3072, 1024, True, None, None, 124_439_808),
    "gpt2-medium": (50257, 1024, 24, 16, 16, 64, 4096, 1024, True, None, None, 354_823_168),
    "gpt2-xl": (50257, 1600, 48, 25, 25, 64, 6400, 1024, True, None, None, 1_557_611_200),
    "distilgpt2": (50257, 768, 6, 12, 12, 64, 3072, 1024, True, None, None, 81_912_576),
    "llama-1": (32000, 4096, 32, 32, 32, 128, 11008, 2048, False, 1e4, None, 6_738_415_616),
    "llama-2-7b": (32000, 4096, 32, 32, 32, 128, 11008, 4096, False, 1e4, None, 6_738_415_616),
    "codellama-7b": (32016, 4096, 32, 32, 32, 128, 11008, 16384, False, 1e6, None, 6_738_546_688),
    "llama-3-8b": (128256, 4096, 32, 32, 8, 128, 14336, 8192, False, 5e5, None, 8_030_261_248),
    "llama-3.1-8b-instruct": (128256, 4096, 32, 32, 8, 128, 14336, 131072, False, 5e5, None, 8_030_261_248),
    "llama-3.2-1b": (128256, 2048, 16, 32, 8, 64, 8192, 131072, True, 5e5, None, 1_235_814_400),
    "tinyllama": (32000, 2048, 22, 32, 4, 64, 5632, 2048, False, 1e4, None, 1_100_048_384),
    "smollm-135m": (49152, 576, 30, 9, 3, 64, 1536, 2048, True, 1e4, None, 134_515_008),
    "smollm2-135m": (49152, 576, 30, 9, 3, 64, 1536, 8192, True, 1e5, None, 134_515_008),
    "mistral-7b-v0.1": (32000, 4096, 32, 32, 8, 128, 14336, 32768, False, 1e4, 4096, 7_241_732_096),
    "mistral-7b-instruct-v0.3": (32768, 4096, 32, 32, 8, 128, 14336, 32768, False, 1e6, None, 7_248_023_552),
    "mistral-nemo": (131072, 5120, 40, 32, 8, 128, 14336, 131072, False, 1e6, None, 12_247_782_400),
}


def read(values, **changes):
    return nano.read_config(values | changes)[0]


def rope(values, **changes):
    """That of all layers."""
    (found,) = {layer.rope for layer in read(values, **changes).layers}
    return found


def as_transformers_5_writes_it(values):
    """dtype and rope_parameters instead of torch_dtype, rope_theta and rope_scaling."""
    values = dict(values)
    scaling, theta = values.pop("rope_scaling", None), values.pop("rope_theta", 10000.0)
    if "n_embd" not in values:
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": theta} | (scaling or {})
    return values | {"dtype": values.pop("torch_dtype", None)}


@pytest.mark.parametrize("dialect", [dict, as_transformers_5_writes_it])
@pytest.mark.parametrize("name", MEANT)
def test_published_configs_mean_what_they_mean(name, dialect):
    config, family = nano.read_config(dialect(HUB[name]))
    sizes = (config.vocab_size, config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads,
             config.head_dim, config.intermediate_size, config.max_positions)  # fmt: skip
    theta = None if config.layers[0].rope is None else config.layers[0].rope.theta
    rest = (config.tie_embeddings, theta, config.layers[0].window, params.count(config))
    assert sizes + rest == MEANT[name]
    assert family is FAMILIES[HUB[name]["model_type"]]
    assert len({(layer.window, layer.rope) for layer in config.layers}) == 1


def test_every_published_config_has_its_row():
    assert HUB.keys() == MEANT.keys()


def test_the_scalings_of_llama_3():
    assert rope(HUB["llama-3-8b"]) == Rope(5e5)
    assert rope(HUB["llama-3.1-8b-instruct"]) == Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    assert rope(HUB["llama-3.2-1b"]) == Rope(5e5, Llama3Scaling(32.0, 1.0, 4.0, 8192))


def test_what_gpt2_always_has_and_llama_never():
    gpt2, llama, mistral = read(HUB["gpt2"]), read(HUB["llama-1"]), read(HUB["mistral-nemo"])
    assert (gpt2.norm, gpt2.norm_eps, gpt2.activation) == ("layer_norm", 1e-5, "gelu_tanh")
    assert gpt2.learned_positions and gpt2.qkv_bias and gpt2.attention_out_bias and gpt2.mlp_bias and not gpt2.gated_mlp
    assert (llama.norm, llama.norm_eps, llama.activation) == ("rms_norm", 1e-6, "silu")
    for config in (llama, mistral):
        assert config.gated_mlp and not config.learned_positions
        assert not (config.qkv_bias or config.attention_out_bias or config.mlp_bias)
        assert {layer.attention_scale for layer in config.layers} == {None}


# GPT-2's own keys


@pytest.mark.parametrize(("changes", "F"), [({}, 144), ({"n_inner": None}, 144), ({"n_inner": 50}, 50)])
def test_a_null_n_inner_is_four_times_the_width(changes, F):
    values = {key: value for key, value in GPT2.items() if key != "n_inner"}
    assert read(values, **changes).intermediate_size == F


@pytest.mark.parametrize(("changes", "tied"), [({}, True), (dict(tie_word_embeddings=None), True),
                                               (dict(tie_word_embeddings=False), False)])  # fmt: skip
def test_gpt2_is_tied_unless_it_says_otherwise(changes, tied):
    assert read(GPT2, **changes).tie_embeddings is tied


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({}, (12**-0.5, 12**-0.5)),
        (dict(scale_attn_weights=False), (1.0, 1.0)),
        (dict(scale_attn_by_inverse_layer_idx=True), (12**-0.5, 12**-0.5 / 2)),
        (dict(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True), (1.0, 0.5)),
        (dict(reorder_and_upcast_attn=True), (12**-0.5, 12**-0.5)),
    ],
)
def test_the_scale_flags_of_gpt2(changes, scales):
    layers = read(GPT2, **changes).layers
    assert [layer.attention_scale for layer in layers] == pytest.approx(scales)
    assert [layer.rope for layer in layers] == [None, None]


def test_missing_keys_have_the_defaults_of_the_reference():
    few = {key: GPT2[key] for key in ("model_type", "vocab_size", "n_embd", "n_layer", "n_head")}
    gpt2 = read(few)
    assert (gpt2.max_positions, gpt2.norm_eps, gpt2.activation) == (1024, 1e-5, "gelu_tanh")
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    llama = read({key: LLAMA[key] for key in needed}, model_type="llama")
    assert (llama.num_kv_heads, llama.max_positions, llama.norm_eps) == (6, 2048, 1e-6)
    assert (llama.head_dim, set(llama.layers), llama.tie_embeddings) == (8, {LayerConfig()}, False)
    mistral = read({key: LLAMA[key] for key in needed}, model_type="mistral", num_attention_heads=8)
    assert (mistral.num_kv_heads, mistral.max_positions, mistral.layers) == (8, 131072, (LayerConfig(4096),) * 2)


@pytest.mark.parametrize("values", [LLAMA, MISTRAL], ids=["llama", "mistral"])
def test_a_null_counts_as_the_heads_and_the_width_give_it(values):
    config = read(values, num_key_value_heads=None, head_dim=None)
    assert config.num_kv_heads == config.num_heads == values["num_attention_heads"]
    assert config.head_dim == values["hidden_size"] // values["num_attention_heads"]


@pytest.mark.parametrize(
    ("window", "windows"), [(None, (None, None)), (1, (1, 1)), (7, (7, 7)), (10**6, (10**6, 10**6))]
)
def test_mistral_windows_are_the_same_in_every_layer(window, windows):
    assert tuple(layer.window for layer in read(MISTRAL, sliding_window=window).layers) == windows


# Gemma 3 with eyes


def test_of_gemma_3_with_images_the_text_model_is_read():
    """google/gemma-3-4b-it as it lies on the hub: 8 heads and 262,208 pieces go without saying. 3.88 billion parameters."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip
    values = {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152},
    }  # fmt: skip
    config = read(values)
    assert params.count(config) == 3_880_263_168 and config.layers[5].rope == Rope(1e6, LinearScaling(8.0))
    alone = text | {"vocab_size": 262208, "num_attention_heads": 8}
    assert config == read(alone)
    with pytest.raises(ConfigError, match=r"^config.json: text_config: not understood: magic_norm = 1"):
        read(values, text_config=text | {"magic_norm": 1})
    with pytest.raises(ConfigError, match=r"^config.json: text_config is 3; expected an object"):
        read(values, text_config=3)
    with pytest.raises(ConfigError, match=r"not understood: text_config"):
        read(LLAMA, text_config=text)


# rope, in both dialects

ROPES = {
    "linear": (dict(factor=2.5), LinearScaling(2.5)),
    "llama3": (
        dict(factor=8, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        Llama3Scaling(8.0, 1.0, 4.0, 32),
    ),
    "yarn": (
        dict(factor=4.0, original_max_position_embeddings=32, beta_fast=16, beta_slow=2, truncate=False, attention_factor=1.5),
        YarnScaling(4.0, 32, 1.5, 16.0, 2.0, False),
    ),
}  # fmt: skip
PLAIN = {key: value for key, value in LLAMA.items() if not key.startswith("rope")}


@pytest.mark.parametrize("word", ["type", "rope_type"])
@pytest.mark.parametrize("kind", ROPES)
def test_rope_scaling_in_both_dialects(kind, word):
    numbers, scaling = ROPES[kind]
    old = read(PLAIN, rope_theta=5e5, rope_scaling={word: kind} | numbers)
    new = read(PLAIN, rope_parameters={word: kind, "rope_theta": 5e5} | numbers)
    assert old == new
    assert old.layers[0].rope == Rope(5e5, scaling)


def test_both_words_for_the_type_may_stand_side_by_side():
    assert rope(PLAIN, rope_scaling=dict(type="linear", rope_type="linear", factor=2)).scaling == LinearScaling(2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {}, dict(rope_scaling=None), dict(rope_parameters=None), dict(rope_scaling={}), dict(rope_scaling={"type": "default"}),
        dict(rope_parameters={"rope_type": "default", "rope_theta": 10000}), dict(rope_theta=None), dict(rope_theta=10000),
        dict(rope_theta=1e4, rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        dict(partial_rotary_factor=1.0),
    ],
)  # fmt: skip
def test_no_scaling_in_many_words(changes):
    assert rope(PLAIN, **changes) == Rope()


def test_the_theta_inside_wins_as_in_the_reference():
    assert rope(PLAIN, rope_theta=1.0, rope_parameters={"rope_type": "default", "rope_theta": 7e5}).theta == 7e5


@pytest.mark.parametrize(
    ("beside", "inside", "original"), [(64, 32, 64), (None, 32, 32), (64, None, 64), (None, None, 256)]
)
def test_the_original_length_beside_the_object_wins_as_in_the_reference(beside, inside, original):
    scaling = dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=inside)
    found = rope(PLAIN, rope_scaling=scaling, original_max_position_embeddings=beside).scaling
    assert found.original_max_positions == original


@pytest.mark.parametrize(
    ("numbers", "factor"),
    [
        ({}, 0.1 * math.log(4) + 1),
        (dict(mscale=0.5), 0.1 * math.log(4) + 1),
        (dict(mscale=1.0, mscale_all_dim=0), 0.1 * math.log(4) + 1),
        (dict(mscale=0.5, mscale_all_dim=2.0), (0.05 * math.log(4) + 1) / (0.2 * math.log(4) + 1)),
        (dict(mscale=0.5, mscale_all_dim=2.0, attention_factor=0.7), 0.7),
        (dict(factor=0.5), 1.0),
        (dict(factor=None), 0.1 * math.log(8) + 1),  # 256 positions, 32 originally
    ],
)
def test_how_hot_yarn_makes_attention(numbers, factor):
    scaling = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32) | numbers
    assert rope(PLAIN, rope_scaling=scaling).scaling.attention_factor == pytest.approx(factor)


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        (dict(rope_type="xpos", factor=2.0), "rope_scaling: rope type 'xpos' is not supported; known: default, linear, "),
        (dict(type="longrope", factor=2.0), "short_factor is missing; expected a list of finite numbers above 0"),
        (dict(rope_type=None), "rope type None is not supported"),
        (dict(rope_type=["yarn"]), "is not supported"),
        (dict(factor=2.0), "rope_scaling: not understood: factor = 2.0"),
        (dict(rope_type="linear"), "rope_scaling: factor is missing; expected a finite number above 0"),
        (dict(rope_type="linear", factor=None), "factor is None; expected a finite number above 0"),
        (dict(rope_type="linear", factor="2"), "factor is '2'; expected a finite number above 0"),
        (dict(rope_type="linear", factor=-1), "factor is -1"),
        (dict(rope_type="linear", factor=True), "factor is True"),
        (dict(rope_type="linear", factor=2.0, low_freq_factor=1.0), "not understood: low_freq_factor = 1.0"),
        (dict(rope_type="llama3", factor=8.0, high_freq_factor=4.0), "low_freq_factor is missing"),
        (dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=1.0), "has to be above"),
        (YARN | dict(original_max_position_embeddings=0), "original_max_position_embeddings is 0"),
        (YARN | dict(beta_fast="32"), "beta_fast is '32'"),
        (YARN | dict(truncate="no"), "truncate is 'no'; expected true or false"),
        (YARN | dict(mscale=1.0, mscale_all_dim="1"), "mscale_all_dim is '1'; expected a finite number"),
        (YARN | dict(mscale=[1], mscale_all_dim=1.0), r"mscale is \[1\]; expected a finite number"),
        (YARN | dict(attention_factor=0), "attention_factor is 0"),
        (YARN | dict(partial_rotary_factor=0.5), "partial_rotary_factor 0.5 is not supported"),
        ("linear", "rope_scaling is 'linear'; expected an object or null"),
        ([2.0], r"rope_scaling is \[2.0\]; expected an object or null"),
    ],
)  # fmt: skip
def test_rope_scaling_that_is_not_known_or_not_whole_is_refused(scaling, words):
    with pytest.raises(ConfigError, match=f"^config.json: .*{words}"):
        read(PLAIN, rope_scaling=scaling)


@pytest.mark.parametrize(
    ("changes", "truncate"), [({}, True), (dict(truncate=None), False), (dict(truncate=False), False)]
)
def test_yarn_truncates_where_the_key_is_missing_and_not_where_it_is_null_as_in_the_reference(changes, truncate):
    assert rope(PLAIN, rope_scaling=YARN | changes).scaling.truncate is truncate


def test_two_scalings_that_disagree_are_refused():
    with pytest.raises(ConfigError, match="rope_scaling and rope_parameters disagree; keep one of the two"):
        read(PLAIN, rope_scaling=YARN, rope_parameters={"rope_type": "default", "rope_theta": 1e4})


def test_theta_one_with_yarn_is_refused_with_the_file():
    with pytest.raises(ConfigError, match=r"^config.json: rope_theta is 1"):
        read(PLAIN, rope_theta=1, rope_scaling=YARN)


# activations


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_fast", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"),
     ("relu", "relu"), ("relu2", "relu_squared"), ("silu", "silu"), ("swish", "silu")],
)  # fmt: skip
def test_activations(theirs, ours):
    assert read(GPT2, activation_function=theirs).activation == read(LLAMA, hidden_act=theirs).activation == ours


@pytest.mark.parametrize("wrong", ["quick_gelu", "tanh", "", 3, ["silu"], {"name": "silu"}])
def test_unknown_activations_are_refused(wrong):
    for values, key in ((GPT2, "activation_function"), (LLAMA, "hidden_act"), (MISTRAL, "hidden_act")):
        with pytest.raises(
            ConfigError, match=f"config.json: {key} is .*expected a supported activation; known: gelu, "
        ):
            read(values, **{key: wrong})


# values of the wrong kind

COUNTS = {
    "gpt2": ["vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "n_inner"],
    "llama": ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "head_dim", "max_position_embeddings", "original_max_position_embeddings"],
}  # fmt: skip
COUNTS["mistral"] = [*COUNTS["llama"], "sliding_window"]
NUMBERS = {
    "gpt2": ["layer_norm_epsilon"],
    "llama": ["rms_norm_eps", "rope_theta", "partial_rotary_factor"],
    "mistral": ["rms_norm_eps", "rope_theta", "partial_rotary_factor"],
}
FLAGS = {
    "gpt2": ["tie_word_embeddings", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"],
    "llama": ["tie_word_embeddings", "attention_bias", "mlp_bias"],
    "mistral": ["tie_word_embeddings"],
}


def of_every_family(keys):
    return [pytest.param(family, key, id=f"{family}-{key}") for family in keys for key in keys[family]]


@pytest.mark.parametrize("wrong", [0, -3, 2.5, 8.0, "8", True, [8], {}, 10**400 * -1])
@pytest.mark.parametrize(("family", "key"), of_every_family(COUNTS))
def test_counts_are_whole_numbers_of_at_least_one(family, key, wrong):
    with pytest.raises(ConfigError, match=f"config.json: {key} is .*expected a whole number of at least 1"):
        read(CONFIG_JSON[family], **{key: wrong})


@pytest.mark.parametrize(("family", "key"), of_every_family(COUNTS))
def test_counts_are_bounded_before_anything_is_made_of_so_many(family, key):
    with pytest.raises(ConfigError, match=f"config.json: {key} is 10{{50}}.*expected a whole number of at most"):
        read(CONFIG_JSON[family], **{key: 10**309})
    for layers in {"num_hidden_layers", "n_layer"} & {key}:
        with pytest.raises(ConfigError, match=f"config.json: {layers} is 1000000; expected a whole number of at most"):
            read(CONFIG_JSON[family], **{key: 1_000_000})


@pytest.mark.parametrize("wrong", [0, -1e-5, math.nan, math.inf, 10**400, 1e39, 1e-39, "1e-5", True, [1.0], {}])
@pytest.mark.parametrize(("family", "key"), of_every_family(NUMBERS))
def test_numbers_are_finite_and_positive(family, key, wrong):
    with pytest.raises(ConfigError, match=f"config.json: {key} is .*expected a finite number above 0"):
        read(CONFIG_JSON[family], **{key: wrong})


@pytest.mark.parametrize("wrong", [0, 1, "true", "", [], {}])
@pytest.mark.parametrize(("family", "key"), of_every_family(FLAGS))
def test_flags_are_true_or_false(family, key, wrong):
    with pytest.raises(ConfigError, match=f"config.json: {key} is .*expected true or false"):
        read(CONFIG_JSON[family], **{key: wrong})


@pytest.mark.parametrize("wrong", [None, 3, ["llama"], True])
def test_the_model_type_is_a_text(wrong):
    with pytest.raises(ConfigError, match=r"config.json: model_type is .*expected a string"):
        read(LLAMA, model_type=wrong)


@pytest.mark.parametrize("family", COUNTS)
def test_sizes_that_have_no_default_have_to_be_there(family):
    optional = {"n_positions", "n_inner", "num_key_value_heads", "head_dim", "max_position_embeddings",
                "original_max_position_embeddings", "sliding_window"}  # fmt: skip
    for key in set(COUNTS[family]) - optional:
        values = {name: value for name, value in CONFIG_JSON[family].items() if name != key}
        with pytest.raises(ConfigError, match=f"config.json: {key} is missing; expected a whole number"):
            read(values)
        with pytest.raises(ConfigError, match=f"config.json: {key} is None; expected a whole number"):
            read(values, **{key: None})


@pytest.mark.parametrize("name", ["gpt_neo", "LLaMA", "gemma9", "", "../llama"])
def test_an_unknown_model_type_is_refused_with_those_that_are_known(name):
    with pytest.raises(ConfigError, match=f"model_type {name!r} is not supported; known: gpt2, llama, mistral"):
        read(LLAMA, model_type=name)


def test_a_config_without_a_model_type_is_refused():
    with pytest.raises(ConfigError, match=r"^here: model_type is missing; expected a string"):
        nano.read_config({}, "here")


@pytest.mark.parametrize("wrong", [None, [], "llama", 3])
def test_a_config_is_an_object(wrong):
    with pytest.raises(ConfigError, match=r"^here: found \w+, expected a JSON object"):
        nano.read_config(wrong, "here")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (GPT2 | dict(n_head=5), "here: n_embd is 36; expected a multiple of n_head 5"),
        (
            LLAMA | dict(num_attention_heads=7),
            "here: hidden_size is 48; expected a multiple of num_attention_heads 7, or",
        ),
        (LLAMA | dict(num_key_value_heads=4), "here: num_heads 6 is not a multiple of num_kv_heads 4"),
        (MISTRAL | dict(head_dim=15), "here: head_dim 15 is odd"),
    ],
)
def test_sizes_that_do_not_fit_together_name_the_file(values, words):
    with pytest.raises(ConfigError, match=f"^{words}"):
        nano.read_config(values, "here")


@pytest.mark.parametrize("family", ["seed_oss", "internlm3", "ernie4_5", "qwen3"])
def test_a_missing_head_dim_is_the_familys_and_a_null_what_the_width_gives(family):
    values = {key: value for key, value in (FURTHER | RELATED)[family].items() if key != "head_dim"}
    assert read(values).head_dim == 128
    assert read(values, head_dim=None).head_dim == 8


def test_a_head_of_its_own_size_needs_no_multiple():
    config = read(LLAMA, num_attention_heads=7, num_key_value_heads=7, head_dim=10)
    assert (config.num_heads, config.head_dim, config.hidden_size) == (7, 10, 48)


@pytest.mark.parametrize("family", CONFIG_JSON)
@pytest.mark.parametrize("ids", [None, 2, [2, 3], []])
def test_end_ids_are_no_part_of_the_architecture(family, ids):
    assert read(CONFIG_JSON[family], eos_token_id=ids, bos_token_id=ids, pad_token_id=-1) == read(CONFIG_JSON[family])


# tables


def every_config():
    for tied, inner in itertools.product([False, True], [None, 9]):
        yield "gpt2", read(GPT2, tie_word_embeddings=tied, n_inner=inner)
    for tied, attention, mlp, kv in itertools.product([False, True], [False, True], [False, True], [1, 2, 6]):
        changes = dict(tie_word_embeddings=tied, attention_bias=attention, mlp_bias=mlp, num_key_value_heads=kv)
        yield "llama", read(LLAMA, **changes)
    for tied, window in itertools.product([False, True], [None, 7]):
        yield "mistral", read(MISTRAL, tie_word_embeddings=tied, sliding_window=window)
    for name, tied in itertools.product(further := FURTHER | RELATED | COMPOSITE, [False, True]):
        yield name, read(further[name], tie_word_embeddings=tied)


def test_a_table_fills_exactly_the_layout_and_uses_every_tensor_once():
    for name, config in every_config():
        rows, shapes = FAMILIES[name].table(config), params.shapes(config)
        assert len({(row.name, row.part, row.instead) for row in rows}) == len(rows)
        for tensor, way in {(row.name, row.instead) for row in rows}:  # parts cover it
            stored_shape([row for row in rows if (row.name, row.instead) == (tensor, way)], config.sizes)
        ways = {(path, 0) for path in shapes} | {(row.path, row.instead) for row in rows}
        filled = {(path, way): np.zeros(shapes[path], int) for path, way in ways}
        for row in rows:
            tensor = np.ones(source_shape(row.axes, config.sizes), int)
            piece = filled[row.path, row.instead][row.piece()]
            piece += rearrange(tensor, row.axes, config.sizes).reshape(piece.shape)
        assert all((count == 1).all() for count in filled.values())


def test_no_tensor_of_a_table_is_ignored():
    for name, config in every_config():
        patterns = FAMILIES[name].ignored(config)
        rows = [row for row in FAMILIES[name].table(config) if not row.instead]
        names = [prefix + row.name for row in rows for prefix in FAMILIES[name].PREFIXES]
        assert not [tensor for tensor in names for pattern in patterns if re.fullmatch(pattern, tensor)]


@pytest.mark.parametrize(
    ("family", "tensor", "ignored"),
    [
        ("gpt2", "transformer.h.11.attn.bias", True),
        ("gpt2", "h.0.attn.bias", True),
        ("gpt2", "h.0.attn.masked_bias", True),
        ("gpt2", "h.0.attn.c_attn.bias", False),
        ("gpt2", "h.0.crossattention.bias", False),
        ("llama", "model.layers.31.self_attn.rotary_emb.inv_freq", True),
        ("llama", "layers.0.self_attn.rotary_emb.inv_freq", True),
        ("mistral", "model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("llama", "model.rotary_emb.inv_freq", True),
        ("llama", "model.layers.0.self_attn.rotary_emb.cos_cached", True),
        ("mistral", "rope.freqs", True),
        ("gemma3_text", "model.rotary_emb_local.inv_freq", True),
        ("gemma3_text", "language_model.model.rotary_emb.sliding_attention_original_inv_freq", True),
        ("gpt_neox", "gpt_neox.layers.3.attention.rotary_emb.sin_cached", True),
        ("gpt_neox", "gpt_neox.layers.3.attention.masked_bias", True),
        ("gpt_neox", "gpt_neox.layers.3.attention.dense.bias", False),
        ("llama", "model.layers.0.self_attn.q_norm.weight", False),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq.scale", False),
    ],
)
def test_what_may_be_left_over(family, tensor, ignored):
    config = read((CONFIG_JSON | FURTHER)[family])
    assert any(re.fullmatch(pattern, tensor) for pattern in FAMILIES[family].ignored(config)) == ignored


@pytest.mark.parametrize("family", CONFIG_JSON)
@pytest.mark.parametrize("tied", [True, False])
def test_a_second_copy_of_a_tied_table_may_be_left_over(family, tied):
    config = read(CONFIG_JSON[family], tie_word_embeddings=tied)
    assert any(re.fullmatch(pattern, "lm_head.weight") for pattern in FAMILIES[family].ignored(config)) == tied
    rows = [row for row in FAMILIES[family].table(config) if row.name == "lm_head.weight"]
    assert [(row.path, row.instead) for row in rows] == [("embedding.tokens", 1) if tied else ("unembedding.tokens", 0)]


def test_the_worked_example_of_the_readme_is_a_family(monkeypatch):
    """Its table fills the layout of its config, and the model computes something."""
    text = (Path(families.__file__).parent / "README.md").read_text()
    tiny = ModuleType("tiny")
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), vars(tiny))
    monkeypatch.setitem(FAMILIES, "tiny", tiny)
    values = {key: value for key, value in LLAMA.items() if key not in ("attention_bias", "mlp_bias")}
    config, family = nano.read_config(values | {"model_type": "tiny", "tie_word_embeddings": None})
    assert (family, config.tie_embeddings, config.qk_norm) == (tiny, True, "head")
    rows, layout = tiny.table(config), params.layout(config)
    assert {row.path for row in rows} == layout.keys()
    for path, shape in params.shapes(config).items():
        pieces = [row for row in rows if row.path == path and not row.instead]
        filled = sum(math.prod(source_shape(row.axes, config.sizes)) for row in pieces)
        assert filled == math.prod(shape), path


def test_an_unknown_family_is_told_where_to_add_it():
    with pytest.raises(ConfigError, match=r"known: gpt2, llama, [^.]*\. A new family is one file .*README\.md"):
        read(LLAMA, model_type="gemma9")
