"""ModelConfig: what it refuses, what follows from it, and that it can key compiled programs."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from nanollm_jax.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling, resolve_dtype
from nanollm_jax.errors import ConfigError, NanoLLMWarning, shown

RIGHT = dict(
    vocab_size=11, hidden_size=12, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8, intermediate_size=10, max_positions=20
)  # fmt: skip
COUNTS = list(RIGHT)
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
@pytest.mark.parametrize("name", ["norm_eps", "rope_theta"])
def test_epsilon_and_theta_are_finite_and_positive(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*expected a finite number above 0"):
        config(**{name: value})


def test_an_epsilon_is_needed_and_rope_is_not():
    with pytest.raises(ConfigError, match=r"^norm_eps is None"):
        config(norm_eps=None)
    assert config(rope_theta=None).rope_theta is None


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
        (dict(norm="batch_norm"), "norm 'batch_norm' is not supported; known: rms_norm, layer_norm"),
        (dict(norm=None), "norm None is not supported"),
        (dict(activation="tanh"), "activation 'tanh' is not supported; known: gelu, gelu_tanh, relu, silu"),
        (dict(activation=[]), r"activation \[\] is not supported"),
        (dict(head_dim=7), "head_dim 7 is odd; rope rotates pairs"),
        (dict(windows=(4, 4)), "windows has 2 entries for 3 layers"),
        (dict(windows=(4, None, 0)), "window is 0; expected a whole number of at least 1"),
        (dict(windows=(4, 2.5, 1)), "window is 2.5"),
        (dict(windows=[4, 4, 4]), r"windows is \[4, 4, 4\]; expected a tuple"),
        (dict(windows=4), "windows is 4; expected a tuple"),
        (dict(attention_scales=(0.5,) * 4), "attention_scales has 4 entries for 3 layers"),
        (dict(attention_scales=(0.5, -1.0, 1.0)), "attention scale is -1.0; expected a finite number above 0"),
        (dict(attention_scales=(0.5, math.nan, 1.0)), "attention scale is nan"),
        (dict(attention_scales=[1.0, 1.0, 1.0]), r"attention_scales is \[1.0, 1.0, 1.0\]; expected a tuple"),
        (dict(rope_scaling={"factor": 2.0}), "rope_scaling is .*expected a LinearScaling, Llama3Scaling, YarnScaling or Long"),
        (dict(rope_scaling=YARN, rope_theta=1.0), "rope_theta is 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        config(**changes)


def test_an_odd_head_is_fine_where_nothing_is_rotated():
    assert config(head_dim=7, rope_theta=None).sizes["H"] == 7


def test_theta_one_is_refused_by_yarn_alone():
    assert config(rope_theta=1.0, rope_scaling=LinearScaling(2.0)).rope_theta == 1.0


@pytest.mark.parametrize("value", [0, -2.0, math.inf, "8", True, None])
@pytest.mark.parametrize("scaling", [LinearScaling(2.0), LLAMA3, YARN], ids=["linear", "llama3", "yarn"])
def test_every_number_of_a_rope_scaling_is_checked(scaling, value):
    for field in dataclasses.fields(scaling):
        if field.name != "truncate":
            with pytest.raises(ConfigError, match=f"rope scaling {scaling.kind}: {field.name} is "):
                config(rope_scaling=dataclasses.replace(scaling, **{field.name: value}))


@pytest.mark.parametrize("value", [1, 0.0, "yes", None])
def test_yarn_truncates_or_does_not(value):
    with pytest.raises(ConfigError, match=r"rope scaling yarn: truncate is .*expected True or False"):
        config(rope_scaling=dataclasses.replace(YARN, truncate=value))


def test_a_fraction_of_a_position_is_refused():
    with pytest.raises(ConfigError, match=r"original_max_positions is 16.5"):
        config(rope_scaling=dataclasses.replace(LLAMA3, original_max_positions=16.5))


@pytest.mark.parametrize("high", [1.0, 0.5])
def test_the_band_of_llama3_has_a_width(high):
    with pytest.raises(ConfigError, match=f"high_freq_factor {high} has to be above low_freq_factor 1.0"):
        config(rope_scaling=dataclasses.replace(LLAMA3, high_freq_factor=high))


def test_sizes_name_every_axis():
    assert config(num_experts=4, expert_size=5).sizes == {
        "V": 11, "D": 12, "P": 20, "N": 6, "K": 2, "G": 3, "H": 8, "Q": 5, "F": 10, "U": 2, "E": 4, "M": 5,
    }  # fmt: skip


def test_windows_and_scales_are_per_layer():
    plain = config()
    assert [plain.window(layer) for layer in range(3)] == [None, None, None]
    assert plain.attention_scale(2) == pytest.approx(8**-0.5)
    layered = config(windows=(4, None, 9), attention_scales=(0.5, 0.25, 2.0))
    assert [layered.window(layer) for layer in range(3)] == [4, None, 9]
    assert [layered.attention_scale(layer) for layer in range(3)] == [0.5, 0.25, 2.0]


DIFFERENT = [
    dict(vocab_size=12), dict(norm="layer_norm"), dict(norm_eps=1e-6), dict(activation="relu"), dict(gated_mlp=False),
    dict(learned_positions=True), dict(rope_theta=None), dict(rope_theta=1e6), dict(rope_scaling=LinearScaling(2.0)),
    dict(rope_scaling=LinearScaling(4.0)), dict(rope_scaling=LLAMA3), dict(rope_scaling=YARN), dict(windows=(4, 4, 4)),
    dict(windows=(4, None, 4)), dict(attention_scales=(1.0, 0.5, 1.0)), dict(tie_embeddings=True), dict(mlp_bias=True),
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
