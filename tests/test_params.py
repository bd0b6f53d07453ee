"""The parameters: layout, shapes, count, initialiser and tree agree for every combination of features."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nanollm_jax as nano
from nanollm_jax import params
from nanollm_jax.config import NORMS, ModelConfig
from nanollm_jax.errors import CheckpointError
from nanollm_jax.ops import norm

SIZES = dict(vocab_size=13, hidden_size=10, layers=(nano.LayerConfig(),) * 2, num_heads=6, num_kv_heads=3, head_dim=4,
             intermediate_size=7, max_positions=9)  # fmt: skip
FEATURES = dict(
    norm=["rms_norm", "layer_norm"], gated_mlp=[True, False], learned_positions=[False, True], qkv_bias=[False, True],
    attention_out_bias=[False, True], mlp_bias=[False, True], tie_embeddings=[False, True],
)  # fmt: skip
EVERY = [
    ModelConfig(**SIZES, **dict(zip(FEATURES, values, strict=True))) for values in itertools.product(*FEATURES.values())
]
V, D, layers, N, K, H, F, P = SIZES.values()
L = len(layers)


def expected_count(config):
    """The sum that a textbook writes down."""
    norms = (2 * L + 1) * D * (2 if config.norm == "layer_norm" else 1)
    attention = D * N * H + 2 * D * K * H + N * H * D
    attention += (N + 2 * K) * H * config.qkv_bias + D * config.attention_out_bias
    wide = 2 if config.gated_mlp else 1
    mlp = (wide + 1) * D * F + (wide * F + D) * config.mlp_bias
    return norms + L * (attention + mlp) + V * D * (2 - config.tie_embeddings) + P * D * config.learned_positions


def test_shapes_follow_the_layout_and_add_up_for_every_combination_of_features():
    assert len(EVERY) == 128
    for config in EVERY:
        layout, shapes = params.layout(config), params.shapes(config)
        assert list(layout) == list(shapes)
        assert all(shapes[path] == tuple(config.sizes[letter] for letter in layout[path].split()) for path in layout)
        assert params.count(config) == expected_count(config), config


def test_nested_and_flat_trees_are_each_other_and_pass_the_check_for_every_combination_of_features():
    for config in EVERY:
        flat = {path: np.zeros(shape) for path, shape in params.shapes(config).items()}
        tree = params.nest(flat)
        assert isinstance(tree["layers"], tuple) and len(tree["layers"]) == L
        again = params.flatten(tree)
        assert again.keys() == flat.keys() and all(again[path] is flat[path] for path in flat)
        params.check_params(tree, config)


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_a_function_and_the_parameters_that_it_takes(kind):
    """One entry says both, to the layout and to the model; a tree with less is refused, never read as another kind."""
    function = getattr(norm, kind)
    assert tuple(inspect.signature(function).parameters)[1 : 1 + len(NORMS[kind])] == NORMS[kind]
    config = ModelConfig(**SIZES, norm=kind, post_norm=True)
    tree = nano.init_params(config, jax.random.key(0), "float32")
    assert all(tuple(block[name]) == NORMS[kind] for block in tree["layers"] for name in config.norms[:-1])
    assert config.norms[:-1] == ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm")
    tokens, cache = np.array([[1, 2]]), nano.init_cache(config, 1, 4, "float32")
    for leaf in NORMS[kind]:
        less = tree | {"final_norm": {name: array for name, array in tree["final_norm"].items() if name != leaf}}
        with pytest.raises(CheckpointError, match=f"1 parameters do not match the config: final_norm.{leaf}"):
            nano.Model(config, less)
        with pytest.raises(KeyError, match=leaf):
            jax.eval_shape(partial(nano.forward, config=config), less, tokens, cache)


@pytest.mark.parametrize("config", EVERY[::9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_fill_the_layout(config, dtype):
    tree = jax.eval_shape(lambda key: nano.init_params(config, key, dtype), jax.random.key(0))
    params.check_params(tree, config)
    assert {path: array.shape for path, array in params.flatten(tree).items()} == params.shapes(config)
    assert all(array.dtype == jnp.dtype(dtype) for array in jax.tree.leaves(tree))


def test_layers_keep_their_order_past_nine():
    config = ModelConfig(**SIZES | {"layers": SIZES["layers"] * 6})
    flat = {path: np.full(shape, i) for i, (path, shape) in enumerate(params.shapes(config).items())}
    tree = params.nest(dict(sorted(flat.items())))
    for layer in range(12):
        assert tree["layers"][layer]["mlp"]["up"] is flat[f"layers.{layer}.mlp.up"]


# few different shapes, because each is compiled: tables and matrices are all 300 by 64 or the reverse
DRAWN = dict(vocab_size=300, hidden_size=64, layers=(nano.LayerConfig(),), num_heads=8, num_kv_heads=8, head_dim=16,
             intermediate_size=300, max_positions=300,
             norm="layer_norm", learned_positions=True, qkv_bias=True, mlp_bias=True)  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    config = ModelConfig(**DRAWN, attention_out_bias=True)
    return {path: np.asarray(x) for path, x in params.flatten(nano.init_params(config, jax.random.key(3))).items()}


def test_an_array_depends_on_the_key_and_its_path_alone(drawn):
    """Not on what else the model has: a deeper, tied model keeps the weights that both have."""
    deeper = ModelConfig(**DRAWN | {"layers": DRAWN["layers"] * 2}, tie_embeddings=True)
    other = params.flatten(nano.init_params(deeper, jax.random.key(3)))
    both = drawn.keys() & other.keys()
    assert drawn.keys() - both == {"unembedding.tokens", "layers.0.attention.bo"}
    for path in both:
        np.testing.assert_array_equal(drawn[path], other[path])
    another_key = params.flatten(nano.init_params(deeper, jax.random.key(4)))
    assert not any(np.array_equal(another_key[path], other[path]) for path in other)


def test_no_two_arrays_have_the_same_numbers_and_none_has_zeros(drawn):
    assert len({array.tobytes() for array in drawn.values()}) == len(drawn)
    assert all(np.all(array != 0) for array in drawn.values())


@pytest.mark.parametrize(
    ("path", "mean", "deviation"),
    [
        ("embedding.tokens", 0, 64**-0.5),
        ("embedding.positions", 0, 64**-0.5),
        ("unembedding.tokens", 0, 64**-0.5),
        ("layers.0.attention.wqkv", 0, 64**-0.5),
        ("layers.0.attention.wo", 0, (8 * 16) ** -0.5),
        ("layers.0.attention.bqkv", 0, 0.1),
        ("layers.0.attention.bo", 0, 0.1),
        ("layers.0.attention_norm.scale", 1, 0.1),
        ("layers.0.mlp_norm.bias", 0, 0.1),
        ("layers.0.mlp.up", 0, 64**-0.5),
        ("layers.0.mlp.down", 0, 300**-0.5),
        ("layers.0.mlp.up_bias", 0, 0.1),
        ("final_norm.scale", 1, 0.1),
    ],
)
def test_random_weights_keep_the_size_of_what_passes_through(drawn, path, mean, deviation):
    array = drawn[path]
    noise = 5 / math.sqrt(array.size)  # five deviations of an estimate
    assert abs(array.mean() - mean) < noise * deviation
    assert abs(array.std() / deviation - 1) < noise


def test_an_unknown_dtype_is_refused():
    with pytest.raises(nano.ConfigError, match="dtype 'float8' is not supported"):
        nano.init_params(EVERY[0], jax.random.key(0), "float8")


@pytest.mark.parametrize(
    ("file", "numbers"),
    [
        ("gpt2-124m.json", 124_439_808),
        ("llama-2-7b.json", 6_738_415_616),
        ("llama-3.1-8b.json", 8_030_261_248),
        ("mistral-7b-v0.1.json", 7_241_732_096),
    ],
)
def test_published_models_have_as_many_parameters_as_their_authors_counted(file, numbers):
    config, _ = nano.read_config(json.loads((Path(__file__).parents[1] / "configs" / file).read_text()))
    assert params.count(config) == numbers


def tree():
    return params.nest({path: np.ones(shape) for path, shape in params.shapes(EVERY[0]).items()})


def test_a_missing_an_extra_and_a_mis_shaped_parameter_are_named():
    broken = tree()
    del broken["final_norm"]["scale"]
    broken["layers"][1]["attention"]["bqkv"] = np.zeros((N, H))
    broken["layers"][0]["mlp"]["up"] = np.zeros((2, D, F))
    with pytest.raises(CheckpointError) as error:
        params.check_params(broken, EVERY[0])
    for words in (
        "3 parameters do not match",
        f"final_norm.scale: found None, expected ({D},)",
        f"layers.1.attention.bqkv: found ({N}, {H}), expected None",
        f"layers.0.mlp.up: found (2, {D}, {F}), expected (2, {F}, {D})",
    ):
        assert words in str(error.value)


def test_a_long_list_of_differences_is_cut():
    with pytest.raises(CheckpointError, match=r"^(\d+) parameters") as error:
        params.check_params({"layers": ()}, EVERY[0])
    assert str(error.value).startswith(f"{len(params.layout(EVERY[0]))} parameters")
    assert str(error.value).count("expected") == 8


def test_layers_of_another_number_are_refused():
    short = tree()
    short["layers"] = short["layers"][:1]
    with pytest.raises(CheckpointError, match=r"6 parameters .*layers\.1\.attention\.wqkv: found None"):
        params.check_params(short, EVERY[0])


@pytest.mark.parametrize("wrong", [None, {}, [], {"layers": {"0": {}}}, {"layers": None}, "weights"])
def test_what_is_no_tree_of_parameters_is_refused(wrong):
    with pytest.raises(CheckpointError, match="expected a tree as init_params makes it"):
        params.check_params(wrong, EVERY[0])


def test_a_leaf_that_is_no_array_is_refused():
    broken = tree()
    broken["final_norm"]["scale"] = None
    with pytest.raises(CheckpointError, match=r"final_norm\.scale: found \(\), expected \(10,\)"):
        params.check_params(broken, EVERY[0])
