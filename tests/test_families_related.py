"""Families whose mathematics is that of others: what their config.json means, and what of it is refused."""

from __future__ import annotations

import math

import pytest
from models import COMPOSITE, FURTHER, MISTRAL, RELATED, SHARED, YARN

import nanollm_jax as nano
from nanollm_jax import params
from nanollm_jax.errors import ConfigError
from nanollm_jax.ropes import Llama3Scaling, Rope, YarnScaling
from nanollm_jax.weights import quantised


def read(values, **changes):
    return nano.read_config(values | changes)[0]


def test_of_qwen_and_mistral_with_images_the_text_model_is_read():
    """Inside text_config or, in older files of Qwen, beside the rest; a section for each of three positions means nothing."""
    images = {"vision_config": {"depth": 1}, "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7}
    text = SHARED | {"rope_theta": 1e6}
    mrope = {"mrope_section": [2, 1, 1], "type": "mrope", "rope_type": "default"}
    for name, alone in (("qwen2_5_vl", "qwen2"), ("qwen2_vl", "qwen2"), ("qwen3_vl", "qwen3")):
        expected = read(text | {"model_type": alone, "rms_norm_eps": 1e-5})
        inside = text | {"model_type": f"{name}_text", "rms_norm_eps": 1e-5}
        for rope in (None, mrope, mrope | {"mrope_interleaved": True}):
            assert read(images, model_type=name, text_config=inside | {"rope_scaling": rope}) == expected
            if alone == "qwen2":
                assert read(images | text, model_type=name, rms_norm_eps=1e-5, rope_scaling=rope) == expected
        assert read(images, model_type=name, text_config=inside, tie_word_embeddings=True).tie_embeddings
        assert read(images, model_type=name, text_config=inside | {"tie_word_embeddings": True}).tie_embeddings
        stretched = read(
            images, model_type=name, text_config=inside | {"rope_scaling": mrope | {"type": "yarn"} | YARN}
        )
        assert stretched.layers[0].rope == read(text, model_type=alone, rope_scaling=YARN).layers[0].rope
    small = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "mlp_only_layers": [1]}
    expected = read(text | small, model_type="qwen3_moe", norm_topk_prob=True)
    assert expected.layers[0].router.renormalize and expected.layers[1].router is None
    for said in ({}, {"norm_topk_prob": True, "rope_scaling": mrope | {"mrope_interleaved": True}}):
        assert read(images, model_type="qwen3_vl_moe", text_config=text | small | said) == expected
    for wrong, message in (
        ({"norm_topk_prob": False}, "norm_topk_prob is False; expected true"),
        ({"moe_intermediate_size": 16}, "moe_intermediate_size is 16; expected neither hidden_size nor half"),
        ({"use_sliding_window": True}, "not understood: use_sliding_window = True"),
    ):
        with pytest.raises(ConfigError, match=f"^config.json: text_config: {message}"):
            read(images, model_type="qwen3_vl_moe", text_config=text | small | wrong)
    sees = {"model_type": "mistral3", "image_token_index": 10, "spatial_merge_size": 2, "vision_feature_layer": -1}
    assert read(sees, text_config=MISTRAL) == read(MISTRAL)
    grown = MISTRAL | {"rope_parameters": FURTHER["ministral3"]["rope_parameters"], "rope_theta": None}
    assert read(sees, text_config=grown | {"model_type": "ministral3"}) == read(grown, model_type="ministral3")
    with pytest.raises(
        ConfigError, match=r"^config.json: text_config: model_type is 'llama'; expected 'mistral' or 'mini"
    ):
        read(sees, text_config=MISTRAL | {"model_type": "llama"})
    with pytest.raises(
        ConfigError, match=r"^config.json: text_config: model_type is \[\]; expected 'mistral' or 'mini"
    ):
        read(sees, text_config=MISTRAL | {"model_type": []})
    with pytest.raises(ConfigError, match=r"^config.json: text_config is missing; expected an object"):
        read(sees)


def test_weights_in_few_bits_may_be_spoken_of_in_the_part_for_text():
    sees, groups = COMPOSITE["kimi_k25"], {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int",
                   "strategy": "group", "group_size": 32, "symmetric": True}}}  # fmt: skip
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    inside = sees | {"text_config": sees["text_config"] | {"quantization_config": said}}
    assert read(inside) == read(sees)
    assert quantised.of_whole(inside) == sees | {"quantization_config": said} and quantised.of_whole(sees) is sees
    inside["text_config"] |= {"quantization_config": {"quant_method": "aqlm"}}
    with pytest.raises(
        ConfigError, match=r"^config.json: quantization_config says AQLM: quantised weights of that kind"
    ):
        read(inside)


LAYERS = ["full_attention", "sliding_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("family", "changes", "windows", "rotates"),
    [
        ("olmo3", {"num_hidden_layers": 5}, (6, 6, 6, None, 6), 5),
        ("olmo3", {"layer_types": LAYERS}, (None, 6, 6), 3),
        ("ministral", {"layer_types": None}, (6, 6, 6), 3),
        ("ministral", {"layer_types": None, "sliding_window": None}, (), 3),
        ("cwm", {"num_hidden_layers": 5}, (None, 6, 6, 6, None), 5),
        ("exaone4", {}, (6, None, 6), 2),
        ("exaone4", {"sliding_window_pattern": "LLG"}, (6, 6, None), 2),
        ("exaone4", {"sliding_window_pattern": "L"}, (6, 6, None), 2),
        ("exaone4", {"layer_types": LAYERS, "sliding_window_pattern": "LLLG"}, (None, 6, 6), 2),
        ("exaone4", {"sliding_window": None, "sliding_window_pattern": None}, (), 3),
        ("granitemoehybrid", {}, (), 0),
        ("granitemoehybrid", {"position_embedding_type": "rope"}, (), 1),
        ("granitemoehybrid", {"position_embedding_type": "rope", "layer_types": ["attention"] * 3}, (), 3),
    ],
)
def test_which_layers_have_a_window_and_which_rotate(family, changes, windows, rotates):
    config = read((FURTHER | RELATED)[family], **changes)
    assert tuple(layer.window for layer in config.layers) == (windows or (None,) * 3)
    assert sum(layer.rope is not None for layer in config.layers) == rotates


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm is True; expected false"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual is True; expected false"),
        (
            "granitemoehybrid",
            {"layer_types": ["mamba", "attention", "mamba2"]},
            "layer_types is .*; expected a list of 3 of mamba, linear_attention, attention, full_attention",
        ),
        ("granitemoehybrid", {"layer_types": ["attention"]}, "layer_types is .*; expected a list of 3"),
        ("granitemoehybrid", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ("granitemoehybrid", {"mamba_n_heads": 7}, "mamba_n_heads is 7; expected a divisor of mamba_expand .* 64"),
        ("granitemoehybrid", {"mamba_n_groups": 3}, "mamba_n_groups is 3; expected a divisor of mamba_n_heads 8"),
        ("granitemoehybrid", {"mamba_d_head": 9}, "mamba_d_head is 9; expected 'auto' or 8"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        (
            "nemotron_h",
            {"layers_block_type": ["mamba", "mamba2"]},
            "layers_block_type is .*; expected a list of mamba, ",
        ),
        (
            "nemotron_h",
            {"num_hidden_layers": 4},
            "num_hidden_layers is 4; expected 5, of which it is said what they are",
        ),
        (
            "nemotron_h",
            {"layers_block_type": None, "hybrid_override_pattern": "MX"},
            "hybrid_override_pattern is 'MX'; ",
        ),
        ("nemotron_h", {"n_groups": 3}, "n_groups is 3; expected a divisor of mamba_num_heads 8"),
        ("nemotron_h", {"mamba_hidden_act": "gelu"}, "mamba_hidden_act is 'gelu'; expected 'silu'"),
        ("nemotron_h", {"time_step_limit": [0.0, 0.1]}, "time_step_limit is .*; expected .0, Infinity."),
        ("nemotron_h", {"attention_bias": True}, "attention_bias is True; expected false or null"),
        ("nemotron_h", {"mlp_bias": True}, "mlp_bias is True; expected false beside moe_latent_size"),
        ("nemotron_h", {"mamba_proj_bias": True}, "mamba_proj_bias is True; expected false or null"),
        ("nemotron_h", {"residual_in_fp32": True}, "residual_in_fp32 is True; expected false or null"),
        ("internlm3", {"bias": False}, "bias is False; expected True, as for queries, keys and values"),
        ("exaone4", {"sliding_window_pattern": "LX"}, "sliding_window_pattern is 'LX'; expected a whole number"),
        ("olmo3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters is .*; expected an object with full"),
    ],
)
def test_what_a_related_family_does_not_have_is_refused(family, changes, words):
    with pytest.raises(ConfigError, match=f"^config.json: {words}"):
        read((FURTHER | RELATED)[family], **changes)


def test_the_ropes_of_olmo_3():
    """Only layers without a window are stretched. A rope_theta beside the objects is theirs, as in the reference."""
    stretched = YarnScaling(4.0, 32, 0.1 * math.log(4) + 1)
    assert {layer.rope for layer in read(RELATED["olmo3"]).layers} == {Rope(5e5)}  # three layers, all with a window
    config = read(RELATED["olmo3"], num_hidden_layers=4, rope_theta=1e4)
    assert [layer.rope for layer in config.layers] == [Rope(5e5)] * 3 + [Rope(1e4, stretched)]


def test_code_world_model_without_a_word_about_rope():
    rope = read(RELATED["cwm"], rope_theta=1e4).layers[0].rope
    assert rope == Rope(1e6, Llama3Scaling(16.0, 1.0, 4.0, 8192))
    rope = read(RELATED["cwm"], rope_theta=1e4, rope_scaling=YARN).layers[0].rope
    assert (rope.theta, rope.scaling.factor) == (1e4, 4.0)


def test_dynamic_scaling_begins_past_the_positions_that_a_model_has():
    scaling = {"rope_type": "dynamic", "factor": 6.0}
    assert read(RELATED["internlm3"], rope_scaling=scaling) == read(RELATED["internlm3"])
    with pytest.raises(ConfigError, match=r"rope_scaling: factor is missing"):
        read(RELATED["internlm3"], rope_scaling={"rope_type": "dynamic"})


def test_pairs_of_neighbours():
    assert [read(RELATED[name]).rope_pairs for name in ("glm", "glm4", "ernie4_5", "seed_oss")] == [
        "neighbours", "neighbours", "neighbours", "halves"]  # fmt: skip
    assert (read(RELATED["glm"]).rotary_dim, read(RELATED["ernie4_5"]).rotary_dim) == (6, None)


# How many numbers published checkpoints hold, those of vision left out.
EXAONE = dict(model_type="exaone4", vocab_size=102400, num_key_value_heads=8, max_position_embeddings=65536)
GRANITE = dict(vocab_size=100352, hidden_size=2560, intermediate_size=8192, num_hidden_layers=40, num_attention_heads=40,
               num_key_value_heads=8, tie_word_embeddings=True)  # fmt: skip
GLM = dict(model_type="glm", vocab_size=151552, hidden_size=4096, intermediate_size=13696, num_hidden_layers=40,
           num_attention_heads=32, num_key_value_heads=2, rope_theta=10000.0, partial_rotary_factor=0.5)  # fmt: skip
SIZES = {
    "Olmo-3-1025-7B": (7_298_011_136, dict(
        model_type="olmo3", vocab_size=100278, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=65536, sliding_window=4096)),
    "Seed-OSS-36B": (36_151_104_512, dict(
        model_type="seed_oss", vocab_size=155136, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64,
        num_attention_heads=80, num_key_value_heads=8, residual_dropout=0.1, rope_scaling={"rope_type": "default"})),
    "EXAONE-4.0-1.2B": (1_279_391_488, EXAONE | dict(
        hidden_size=2048, intermediate_size=4096, num_hidden_layers=30, num_attention_heads=32, head_dim=64,
        sliding_window=None, layer_types=["full_attention"] * 30, tie_word_embeddings=True)),
    "granite-4.0-micro": (3_402_836_480, GRANITE | dict(
        model_type="granitemoehybrid", shared_intermediate_size=8192, layer_types=["attention"] * 40, init_method="mup",
        num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope", mamba_n_heads=80, mamba_expand=2,
        mamba_conv_bias=True, normalization_function="rmsnorm")),
    "internlm3-8b-instruct": (8_804_241_408, dict(
        model_type="internlm3", vocab_size=128512, hidden_size=4096, intermediate_size=10240, num_hidden_layers=48,
        num_attention_heads=32, num_key_value_heads=2, bias=False, qkv_bias=False, rope_theta=50000000,
        rope_scaling={"factor": 6.0, "rope_type": "dynamic"}, auto_map={"AutoConfig": "configuration_internlm3.X"})),
    "glm-4-9b-chat-hf": (9_399_951_360, GLM),
    "GLM-4-9B-0414": (9_400_279_040, GLM | dict(model_type="glm4")),
    "ERNIE-4.5-0.3B-PT": (360_748_032, dict(
        model_type="ernie4_5", vocab_size=103424, hidden_size=1024, intermediate_size=3072, num_hidden_layers=18,
        num_attention_heads=16, num_key_value_heads=2, use_bias=False)),
    "stablelm-3b-4e1t": (2_795_443_200, dict(
        model_type="stablelm", vocab_size=50304, hidden_size=2560, intermediate_size=6912, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32)),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_related_family_has_as_many_parameters_as_was_published(name):
    published, values = SIZES[name]
    assert params.count(read(values)) == published


@pytest.mark.parametrize(
    ("whole", "text", "tied"),
    [(None, None, False), (True, None, True), (None, True, True), (False, True, True), (True, False, True),
     (False, False, False)],
)  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_embeddings_of_llava_are_tied_where_either_part_of_its_file_ties_them(family, whole, text, tied):
    said = lambda value: {} if value is None else {"tie_word_embeddings": value}  # noqa: E731
    values = COMPOSITE["llava"] | said(whole)
    values["text_config"] = values["text_config"] | {"model_type": family} | said(text)
    assert read(values).tie_embeddings is tied


GEMMA4 = FURTHER["gemma4_text"]


def test_the_last_layers_of_gemma_4_look_at_the_last_of_their_kind_that_has_keys():
    """E2B as it was published: 35 layers, of which 20 look at the 14th and the 15th; 4.63 billion parameters without eyes."""
    types = ["sliding_attention"] * 4 + ["full_attention"]
    values = GEMMA4 | dict(
        vocab_size=262144, hidden_size=1536, intermediate_size=6144, num_hidden_layers=35, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256, global_head_dim=512, num_kv_shared_layers=20, hidden_size_per_layer_input=256,
        vocab_size_per_layer_input=262144, use_double_wide_mlp=True, layer_types=types * 7, sliding_window=512,
    )  # fmt: skip
    config = read(values)
    assert [layer.keys_of for layer in config.layers] == [None] * 15 + [13, 13, 13, 13, 14] * 4
    assert [config.sizes["F"], config.sizes["F'"], config.sizes["L*I"]] == [6144, 12288, 8960]
    assert {layer.mlp_size for layer in config.layers[:15]} == {None} and config.layers[15].mlp_size == 12288
    table = 262144 * (1536 + 8960)
    wide = 3 * 1536 * (15 * 6144 + 20 * 12288)
    local, full = 1536 * (8 + 8) * 256, 1536 * (8 + 8) * 512  # queries and what leads back
    own = 12 * 1536 * 2 * 256 + 3 * 1536 * 2 * 512 + 12 * 256 + 3 * 512  # keys, values and their norms
    told = 35 * 2 * 256 * 1536 + 8960 * 1536 + 256
    norms = 35 * (5 * 1536 + 1) + 28 * 256 + 7 * 512 + 1536
    assert params.count(config) == table + wide + 28 * local + 7 * full + own + told + norms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers is 4; expected less than 4 layers"),
        (
            {"num_kv_shared_layers": 3},
            "num_kv_shared_layers is 3; expected so few that a layer of either type is before them",
        ),
        ({"num_kv_shared_layers": -1}, "num_kv_shared_layers is -1; expected a whole number"),
        ({"vocab_size_per_layer_input": 7}, "vocab_size_per_layer_input is 7; expected vocab_size"),
        ({"hidden_size_per_layer_input": -2}, "hidden_size_per_layer_input is -2; expected a whole number"),
    ],
)
def test_what_a_small_gemma_4_cannot_say(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(GEMMA4, **changes)
