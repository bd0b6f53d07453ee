"""ModelConfig: what it refuses, what follows from it, and that it can key compiled programs."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from nanollm_jax.config import ModelConfig
from nanollm_jax.dtypes import resolve_dtype
from nanollm_jax.errors import ConfigError, NanoLLMWarning, shown
from nanollm_jax.kinds import Heads, Latent, LayerConfig, Router, Sharpening
from nanollm_jax.ropes import LinearScaling, Llama3Scaling, Rope, YarnScaling

RIGHT = dict(
    vocab_size=11, hidden_size=12, layers=(LayerConfig(),) * 3, num_heads=6, num_kv_heads=2, head_dim=8, intermediate_size=10,
    max_positions=20,
)  # fmt: skip
COUNTS = [name for name in RIGHT if name != "layers"]
FLAGS = ["gated_mlp", "learned_positions", "qkv_bias", "attention_out_bias", "mlp_bias", "tie_embeddings"]
LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)
YARN = YarnScaling(factor=4.0, original_max_positions=16, attention_factor=1.1)


def config(**changes):
    return ModelConfig(**(RIGHT | changes))


@pytest.mark.parametrize("value", [0, -1, 2.0, "8", None, True, math.nan])
@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_whole_numbers_of_at_least_one(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*expected a whole number of at least 1"):
        config(**{name: value})


@pytest.mark.parametrize("value", [2**31, 10**309, 10**5000], ids=["2^31", "309", "5000"])
@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_below_two_to_the_31(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*expected a whole number of at most"):
        config(**{name: value})


def test_what_was_found_is_shown_only_as_far_as_it_can_be_read():
    """It may be a file of 100 MB."""
    error, warning = ConfigError("a" * 10**6 + "z"), NanoLLMWarning("a" * 10**6 + "z")
    for message in (str(error), str(warning)):
        assert len(message) == 2005 and message.startswith("aaa") and message.endswith("aaz") and " ... " in message
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value, text in (
        (10**5000, "a int too long to be written"),
        (deep, "a list too long to be written"),
        ("a", "'a'"),
    ):
        assert shown(value) == text
    assert shown("a" * 200) == "'" + "a" * 79 + "..."


def test_sizes_from_numpy_are_whole_numbers_too():
    assert config(vocab_size=np.int32(11)) == config() and hash(config(vocab_size=np.int32(11))) == hash(config())


@pytest.mark.parametrize("value", [0, -1e-5, math.nan, math.inf, 10**400, 1e39, 1e-39, "1e-5", True, [1.0]])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("norm_eps", lambda value: config(norm_eps=value)), ("rope_theta", Rope),
        ("attention_scale", lambda value: LayerConfig(attention_scale=value)),
    ],
)  # fmt: skip
def test_epsilon_theta_and_scale_are_finite_and_positive(name, make, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*expected a finite number above 0"):
        make(value)


def test_an_epsilon_is_needed_and_rope_is_not():
    with pytest.raises(ConfigError, match=r"^norm_eps is None"):
        config(norm_eps=None)
    assert config(layers=(LayerConfig(rope=None),)).switch_length is None


@pytest.mark.parametrize("value", [0, 1, None, "no", np.True_])
@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_true_or_false(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*expected True or False"):
        config(**{name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(num_kv_heads=4), "num_heads 6 is not a multiple of num_kv_heads 4"),
        (dict(num_kv_heads=12), "num_heads 6 is not a multiple of num_kv_heads 12"),
        (dict(norm="batch_norm"), "norm .batch_norm. is not supported; known: rms_norm, layer_norm, centred_norm"),
        (dict(norm=None), "norm None is not supported"),
        (dict(activation="tanh"), "activation .tanh. is not supported; known: gelu, gelu_tanh, relu, relu_squared, silu"),
        (dict(activation=[]), r"activation \[\] is not supported"),
        (dict(activation="clamped_swish", gated_mlp=False), "clamped_swish.* is of a gate"),
        (dict(shared_norm=True), "shared_norm needs a parallel_residual and a pre_norm"),
        (dict(norm_behind_rope=True), "norm_behind_rope is True, and qk_norm None"),
        (dict(latent=3), "latent is 3; expected a Latent, or None"),
        (dict(latent=Latent(5, 2, 3, 4), rotary_dim=2), "rotary_dim is 2 and head_dim 8; expected 2 and 7"),
        (dict(latent=Latent(6, 2, 3, 4), rotary_dim=2, qkv_bias=True), "qkv_bias beside a latent: that is not computed"),
        (dict(head_bias=1), "head_bias is 1; expected True or False"),
        (dict(head_dim=7), "head_dim 7 is odd; rope rotates pairs"),
        (dict(layers=[LayerConfig()]), r"layers is \[LayerConfig\(\)\]; expected a tuple of LayerConfigs, one a layer"),
        (dict(layers=3), "layers is 3; expected a tuple of LayerConfigs"),
        (dict(layers=()), r"layers is \(\); expected a tuple"),
        (dict(layers=(LayerConfig(), None)), "layers is .*; expected a tuple of LayerConfigs"),
        (dict(layers=(LayerConfig(),) * 10001), "layers has 10001 entries; expected at most 10000"),
        (dict(layers=(LayerConfig(router=Router()),)), "a layer has experts, and num_experts is 0; say how many there are"),
        (dict(layers=(LayerConfig(), LayerConfig(keys_of=1))), "layer 1 looks at the keys of layer 1; expected an earlier one"),
        (dict(layers=(LayerConfig(), LayerConfig(keys_of=0, window=4))), "layer 0; expected .*the same window"),
        (dict(layers=(LayerConfig(), LayerConfig(keys_of=0), LayerConfig(keys_of=1))), "layer 1; .* with keys of its own"),
        (dict(layers=(LayerConfig(heads=Heads(3, 1, 4)), LayerConfig(keys_of=0))), "layer 0; expected .*the same heads"),
        (dict(layers=(LayerConfig(mlp_size=5), LayerConfig(mlp_size=6))), "MLPs of .5, 6.; expected one width beside"),
        (dict(layer_inputs=-1), "layer_inputs is -1; expected a whole number of at least 1"),
        (dict(latent=Latent(6, 2, 3, 4), rotary_dim=2, layers=(LayerConfig(), LayerConfig(keys_of=0))), "beside a latent"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LayerConfig(window=0), "window is 0; expected a whole number of at least 1"),
        (lambda: LayerConfig(window=2.5), "window is 2.5"),
        (
            lambda: LayerConfig(keys_of=-1),
            "keys_of is -1; expected the number of a layer, of one with attention, or None",
        ),
        (lambda: LayerConfig(keys_of=0, lacks="attention"), "keys_of is 0; expected"),
        (lambda: LayerConfig(mlp_size=0), "mlp_size is 0; expected a whole number of at least 1"),
        (lambda: LayerConfig(mlp_size=3, router=Router()), "mlp_size is 3, of a layer without a plain MLP"),
        (lambda: LayerConfig(sharpening=0.1), "sharpening is 0.1; expected a Sharpening, or None"),
        (lambda: Sharpening(0.1, 0), "sharpening: every is 0; expected a whole number of at least 1"),
        (lambda: LayerConfig(router=True), "router is True; expected a Router, or None"),
        (lambda: Router("top"), "scores 'top' of a router are not supported; known: softmax, sigmoid"),
        (lambda: Router(groups=2, top_groups=3), "top_groups 3 is more than 2 groups"),
        (lambda: Router(corrected=1), "router: corrected is 1; expected True or False"),
        (lambda: Router(scale=0.0), "router: scale is 0.0"),
        (lambda: Router(groups=0), "router: groups is 0; expected a whole number of at least 1"),
        (lambda: Router(groups=3).check(8, 1), "1 of 8 experts cannot be chosen from 1 of 3 groups, each judged by 1"),
        (lambda: Router(groups=4).check(8, 3), "3 of 8 experts cannot be chosen from 1 of 4 groups"),
        (lambda: Router(groups=4, judged_by=3).check(8, 1), "from 1 of 4 groups, each judged by 3"),
        (lambda: LayerConfig(rope=(1e4, None)), r"rope is \(10000.0, None\); expected a Rope, or None"),
        (
            lambda: Rope(1e4, {"factor": 2.0}),
            "rope_scaling is .*expected a LinearScaling, Llama3Scaling, YarnScaling, Long",
        ),
        (lambda: Rope(1.0, YARN), "rope_theta is 1"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_an_odd_head_is_fine_where_nothing_is_rotated():
    assert config(head_dim=7, layers=(LayerConfig(rope=None),)).sizes["H"] == 7


def test_theta_one_is_refused_by_yarn_alone():
    assert Rope(1.0, LinearScaling(2.0)).theta == 1.0


@pytest.mark.parametrize("value", [0, -2.0, math.inf, "8", True, None])
@pytest.mark.parametrize("scaling", [LinearScaling(2.0), LLAMA3, YARN], ids=["linear", "llama3", "yarn"])
def test_every_number_of_a_rope_scaling_is_checked(scaling, value):
    for field in dataclasses.fields(scaling):
        if field.name != "truncate":
            with pytest.raises(ConfigError, match=f"rope scaling {scaling.kind}: {field.name} is "):
                Rope(1e4, dataclasses.replace(scaling, **{field.name: value}))


@pytest.mark.parametrize("value", [1, 0.0, "yes", None])
def test_yarn_truncates_or_does_not(value):
    with pytest.raises(ConfigError, match=r"rope scaling yarn: truncate is .*expected True or False"):
        Rope(1e4, dataclasses.replace(YARN, truncate=value))


def test_a_fraction_of_a_position_is_refused():
    with pytest.raises(ConfigError, match=r"original_max_positions is 16.5"):
        Rope(1e4, dataclasses.replace(LLAMA3, original_max_positions=16.5))


@pytest.mark.parametrize("high", [1.0, 0.5])
def test_the_band_of_llama3_has_a_width(high):
    with pytest.raises(ConfigError, match=f"high_freq_factor {high} has to be above low_freq_factor 1.0"):
        Rope(1e4, dataclasses.replace(LLAMA3, high_freq_factor=high))


def test_sizes_name_every_axis():
    assert config(num_experts=4, expert_size=5).sizes == {
        "1": 1, "V": 11, "D": 12, "P": 20, "N": 6, "K": 2, "G": 3, "H": 8, "R": 3, "Q": 5, "F": 10, "U": 2, "E": 4, "M": 5,
        "W": 0, "O": 0,
    }  # fmt: skip


def test_a_deep_model_is_printed_in_a_few_words():
    """Equal layers stand together, and what is not said is as by default."""
    local, whole = LayerConfig(window=1024), LayerConfig(rope=Rope(1e6, LinearScaling(8.0)))
    layers = tuple(whole if layer % 6 == 5 else local for layer in range(80))
    text = repr(config(layers=layers, norm_eps=1e-6))
    assert len(text) < 420 and "num_heads=6" in text and "norm_eps=1e-06" in text and "qkv_bias" not in text
    assert "layers=(0-4 6-10 12-16 " in text and " 78-79: LayerConfig(window=1024), 5 11 17 " in text
    assert "77: LayerConfig(rope=Rope(theta=1000000.0, scaling=LinearScaling(factor=8.0)))" in text
    assert repr(config()).endswith("layers=(0-2: LayerConfig()))")


def layered(**changes):
    """The second of three layers is another."""
    return dict(layers=(LayerConfig(), LayerConfig(**changes), LayerConfig()))


DIFFERENT = [
    dict(vocab_size=12), dict(norm="layer_norm"), dict(norm_eps=1e-6), dict(activation="relu"), dict(gated_mlp=False),
    dict(learned_positions=True), layered(rope=None), layered(rope=Rope(1e6)), layered(rope=Rope(scaling=LinearScaling(2.0))),
    layered(rope=Rope(scaling=LinearScaling(4.0))), layered(rope=Rope(scaling=LLAMA3)), layered(rope=Rope(scaling=YARN)),
    layered(window=4), dict(layers=(LayerConfig(window=4),) * 3), layered(attention_scale=0.5), dict(tie_embeddings=True),
    layered(sharpening=Sharpening(0.1, 4)), layered(keys_of=0), layered(mlp_size=9), dict(layer_inputs=4),
    dict(mlp_bias=True), dict(layers=(LayerConfig(),) * 2), dict(num_experts=4) | layered(router=Router()),
    dict(num_experts=4) | layered(router=Router("sigmoid")), dict(num_experts=4, shared_size=3) | layered(router=Router()),
]  # fmt: skip


def test_equal_configs_hash_alike_and_different_ones_are_different():
    for changes in DIFFERENT:
        assert config(**changes) == config(**changes) and hash(config(**changes)) == hash(config(**changes))
    assert len({config(), *(config(**changes) for changes in DIFFERENT)}) == len(DIFFERENT) + 1


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().vocab_size = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        YARN.factor = 2.0


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"), (jnp.bfloat16, "bfloat16"),
        (np.float16, "float16"), (np.dtype("float32"), "float32"), (ml_dtypes.bfloat16, "bfloat16"),
    ],
)  # fmt: skip
def test_dtypes_by_name_and_by_themselves(dtype, name):
    assert resolve_dtype(dtype) == jnp.dtype(name)


@pytest.mark.parametrize(("backend", "name"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_auto_depends_on_the_device(monkeypatch, backend, name):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert resolve_dtype("auto").name == name


@pytest.mark.parametrize("dtype", ["float64", "int8", "fp8", "half precision", "", None, 16, np.int32, ["float32"], {}])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ConfigError, match=r"dtype .* is not supported; known: auto, float32, bfloat16, float16"):
        resolve_dtype(dtype)
