"""Weights in 8 bits: what is computed is what the rounded weights say, whatever the number of rows, the family and the mesh."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import CONFIG_JSON, FURTHER, forward, random_model

import nanollm_jax as nano
from nanollm_jax import params as parameters
from nanollm_jax.cli import run
from nanollm_jax.dtypes import DTYPES, PLAIN, Dtype, resolve_weights
from nanollm_jax.errors import ConfigError
from nanollm_jax.ops import int8_product
from nanollm_jax.ops.embedding import look_up
from nanollm_jax.ops.int8 import Int8, quantize
from nanollm_jax.ops.int8_product import digits
from nanollm_jax.ops.kept import Kept, letters_of, name_of
from nanollm_jax.ops.linear import linear, product


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(weight: Int8) -> np.ndarray:
    """The weight that it stands for, in float64."""
    scale = np.asarray(weight.scale, np.float64)
    return np.asarray(weight.values, np.float64) * scale.reshape(scale.shape + (1,) * (weight.ndim - scale.ndim))


@pytest.mark.parametrize(("shape", "outputs"), [((6, 10), 1), ((2, 3, 4, 10), 3), ((6, 5, 4), 1)])
def test_a_weight_is_rounded_to_the_nearest_step_of_its_output(shape, outputs):
    weight = normal(*shape)
    weight[0, ..., 0] *= 100  # one output's outlier is not the others'
    rounded = quantize(jnp.asarray(weight), outputs)
    assert rounded.values.dtype == jnp.int8 and rounded.shape == shape and rounded.scale.shape == shape[:outputs]
    inputs = tuple(range(outputs, len(shape)))
    agree(rounded.scale, steps := np.abs(weight).max(inputs) / 127, size=steps)
    step = np.asarray(rounded.scale).reshape(shape[:outputs] + (1,) * len(inputs))
    assert (np.abs(whole(rounded) - weight) <= 0.5001 * step).all()


def test_an_output_of_zeros_stays_zero():
    rounded = quantize(jnp.zeros((3, 4)).at[1, 2].set(5.0), 1)
    agree(whole(rounded), [[0, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(product(jnp.zeros((2, 4)), rounded), np.zeros((2, 3)))


@pytest.mark.parametrize("rows", [1, 2, int8_product.MANY])
def test_gradients_are_those_of_the_weight(rows):
    """Digits are rounded, and what is rounded has no derivative: as if nothing were."""
    weight, x, given = quantize(jnp.asarray(normal(7, 12)), 1), normal(rows, 12, seed=1), normal(rows, 7, seed=2)
    gradient = jax.grad(lambda x: jnp.sum(product(x, weight) * given))(jnp.asarray(x))
    agree(gradient, np.einsum("RO,OI->RI", given.astype(np.float64), whole(weight)))


def test_two_digits_hold_a_row_to_1_64516_of_its_largest_number():
    x = normal(5, 300) * np.array([[1e-6], [1], [1e6], [0], [3]], np.float32)
    found, unit = digits(jnp.asarray(x))
    higher, lower = np.split(np.asarray(found, np.float64), 2)
    assert found.dtype == jnp.int8 and np.abs(found).max() == 127
    error = np.abs(np.asarray(unit, np.float64) * (higher + lower / 254) - x)
    assert (error <= np.abs(x).max(1, keepdims=True) * (1 / 64516 + 1e-6)).all()  # and float32's own rounding
    assert error.max() > 0


@pytest.mark.parametrize("outputs", [1, 70, 256, 512, 600])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 50])
def test_the_product_is_that_of_the_weights_it_stands_for(rows, outputs):
    """In digits and by blocks of 256 outputs."""
    weight, x = quantize(jnp.asarray(normal(outputs, 96)), 1), normal(rows, 96, seed=1)
    expected = x.astype(np.float64) @ whole(weight).T
    error = np.abs(jax.jit(product)(jnp.asarray(x), weight) - expected)
    # a row's error: that of its digits, as a random walk over 96 weights, six deviations far
    largest, float32 = np.abs(x).max(1, keepdims=True), 1e-5 * np.abs(expected).max()
    assert (error <= 6 * largest / 64516 / math.sqrt(3) * np.sqrt((whole(weight) ** 2).sum(1))[None] + float32).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_devices_multiply_the_same_numbers(dtype):
    """Whole numbers up to 127 are exact in every dtype, and so are the sums in float32."""
    weight, x = quantize(jnp.asarray(normal(70, 96)), 1), jnp.asarray(normal(5, 96, seed=1), dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(weight.values, np.float64).T
    found = int8_product.product(x, weight.values)
    assert found.dtype == jnp.float32
    agree(found, exact)


def test_a_number_that_is_none_stays_none():
    """What overflowed is seen in the product, as it is without 8 bits."""
    x = jnp.asarray(normal(3, 8)).at[1, 2].set(jnp.nan).at[2, 0].set(jnp.inf)
    found = np.asarray(product(x, quantize(jnp.asarray(normal(4, 8)), 1)))
    assert np.isfinite(found[0]).all() and not np.isfinite(found[1:]).any()


def test_linear_and_look_up_take_many_axes():
    x, weight, bias = normal(2, 3, 10), quantize(jnp.asarray(normal(4, 5, 10)), 2), normal(4, 5)
    expected = np.einsum("BTI,NHI->BTNH", x, whole(weight)) + bias
    agree(linear(jnp.asarray(x), weight, jnp.asarray(bias)), expected, 3e-4)  # the digits of x
    table, ids = quantize(jnp.asarray(normal(7, 10)), 1), np.array([[0, 6], [3, 3]])
    agree(look_up(table, ids), whole(table)[ids])


@pytest.mark.parametrize("letters", ["K Q H D", "D N H"])
def test_a_weight_says_of_itself_what_others_ask(letters):
    """Its name, its bytes, the letters of its arrays: an array and 8 bits alike."""
    outputs = parameters.outputs(f"layers.0.attention.{'wo' if letters.startswith('D') else 'wqkv'}", letters)
    array = jnp.asarray(normal(*range(2, 2 + len(letters.split()))))
    weight = parameters.MAKERS["int8"](array, outputs=outputs)
    assert isinstance(weight, Kept) and not isinstance(array, Kept)
    for one, name in ((weight, "int8"), (array, "float32")):
        assert name_of(one) == name and DTYPES[name].nbytes(one.shape, outputs) == one.nbytes
        named = letters_of(one, letters)
        assert jax.tree.structure(named) == jax.tree.structure(one)
        assert all(len(axes.split()) == leaf.ndim and letters.startswith(axes)
                   for axes, leaf in zip(jax.tree.leaves(named), jax.tree.leaves(one), strict=True))  # fmt: skip
    assert weight.scale.nbytes == 4 * math.prod(array.shape[:outputs])


def test_a_row_of_the_table_says_bytes_and_what_the_rest_is_in():
    assert resolve_weights("int8", auto="bfloat16") == Dtype("int8", "bfloat16", 8, scales=4)
    assert resolve_weights("auto", auto="bfloat16") is resolve_weights(jnp.bfloat16) is PLAIN["bfloat16"]
    assert resolve_weights(np.int8) == resolve_weights("int8") == resolve_weights(resolve_weights("int8"))
    assert resolve_weights("int8").activations == np.float32  # of this device
    six = Dtype("int6", "bfloat16", 6, scales=2)  # a row that does not exist
    assert (six.nbytes((6, 10), 1), six.nbytes((6,)), six.nbytes((4, 6, 5), 2)) == (45 + 12, 12, 90 + 48)
    with pytest.raises(ConfigError, match=r"dtype 'int6' is not supported; known: auto, float32, .* int8 and int4 for"):
        resolve_weights("int6")


def in_8_bits(config, key=7):
    """A random model in 8 bits, and the same with its rounded weights in float32."""
    params = nano.init_params(config, jax.random.key(key), "int8")
    plain = {path: jnp.asarray(whole(array), jnp.float32) if isinstance(array, Int8) else array
             for path, array in parameters.flatten(params).items()}  # fmt: skip
    return nano.Model(config, params), nano.Model(config, parameters.nest(plain))


# experts, norms over all heads, rings and soft caps, a parallel block; compiling is all that the others cost
QUICK = ("gpt_neox", "qwen3_moe")
FAMILIES = [
    pytest.param(family, marks=[] if family in QUICK else pytest.mark.parity) for family in CONFIG_JSON | FURTHER
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_what_its_rounded_weights_say(family):
    eight, plain = in_8_bits(random_model(family).config)
    kept = [path for path, array in parameters.flatten(eight.params).items() if isinstance(array, Int8)]
    names = set("wqkv wq wo up down q_down kv_down latent_down latent_up tokens win projection".split())
    assert kept == [
        path for path in parameters.layout(eight.config) if path.split(".")[-1] in names
    ]  # kv_up is taken apart
    tokens = np.random.default_rng(0).integers(0, eight.config.vocab_size, (2, 20), dtype=np.int32)

    def scores(model):
        cache = nano.init_cache(model.config, 2, 64, "float32")
        found, cache = forward(model.params, tokens, cache, config=model.config)
        return np.asarray(found), np.asarray(forward(model.params, tokens[:, :1], cache, config=model.config)[0])

    for ours, theirs in zip(scores(eight), scores(plain), strict=True):
        assert np.abs(theirs).max() > 0.1
        agree(ours, theirs, 2e-3)  # the digits of the vectors


def test_the_bundled_model_in_8_bits():
    """A quarter of the bytes, each weight the nearest, and a text nearly as likely."""
    eight, whole_model = nano.load(dtype="int8"), nano.load(dtype="float32")
    found, expected = parameters.flatten(eight.params), parameters.flatten(whole_model.params)
    for path, array in found.items():
        rounded = quantize(expected[path], 1 if path.endswith(".wo") else expected[path].ndim - 1)
        jax.tree.map(np.testing.assert_array_equal, array, rounded if isinstance(array, Int8) else expected[path])
    nbytes = [sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) for model in (eight, whole_model)]
    assert 0.25 < nbytes[0] / nbytes[1] < 0.27
    assert nbytes[0] == sum(parameters.nbytes(eight.config, eight.dtype).values())
    text = "Once upon a time there was a little dog. He liked to play in the park with his red ball."
    surprise = [-np.mean(nano.score(model, [text])[0].logprobs[1:]) for model in (eight, whole_model)]
    assert surprise[0] == pytest.approx(surprise[1], rel=0.02) and surprise[0] != surprise[1]


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=pytest.mark.parity) for family in ("mistral", "llama", "qwen3_moe")]
)
def test_on_a_mesh(family):
    """The same tokens, one of Mistral's key/value heads repeated, and every scale where its outputs are."""
    eight, _ = in_8_bits(random_model(family).config)
    config = eight.config
    over = nano.shard(eight, nano.make_mesh(2, 2))
    prompts = [[5, 6, 7, 8], [9, 10]]
    one, many = (nano.generate(model, prompts, max_new_tokens=12) for model in (eight, over))
    assert [row.token_ids for row in one] == [row.token_ids for row in many]
    dense = next(block["mlp"] for block in over.params["layers"] if "router" not in block["mlp"])
    up, down = dense["up"], dense["down"]
    F = config.intermediate_size // 2
    assert {part.data.shape[1] for part in up.values.addressable_shards} == {F}
    assert {part.data.shape[1] for part in up.scale.addressable_shards} == {F}
    assert {part.data.shape for part in down.scale.addressable_shards} == {(config.hidden_size,)}


def test_loading_onto_a_mesh_gives_what_sharding_gives():
    mesh = nano.make_mesh(1, 3)
    loaded, sharded = nano.load(dtype="int8", mesh=mesh), nano.shard(nano.load(dtype="int8"), mesh)

    def same(ours, theirs):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
        np.testing.assert_array_equal(ours, theirs)

    jax.tree.map(same, loaded.params, sharded.params)


def test_a_cache_in_8_bits_is_refused():
    with pytest.raises(
        ConfigError, match="'int8' is not supported; known: auto, float32, bfloat16, float16, and int8 and int4 for"
    ):
        nano.init_cache(random_model("llama").config, 1, 16, "int8")


def test_commands(capsys, bundled_is_short):
    assert run(["info", "--dtype", "int8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    weights = nano.load(dtype="int8").params
    assert report["dtype"] == "int8" and report["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    assert report["parameters"]["layers.0.attention.wo"]["bytes"] == sum(
        leaf.nbytes for leaf in jax.tree.leaves(weights["layers"][0]["attention"]["wo"])
    )
    assert run(["generate", "Once upon a time", "--dtype", "int8", "--max-new-tokens", "5", "--temperature", "0"]) == 0
    sampling = nano.Sampling(temperature=0.0)
    expected = nano.generate(nano.load(dtype="int8"), "Once upon a time", max_new_tokens=5, sampling=sampling)
    assert capsys.readouterr().out == expected.text + "\n" and len(expected.text) > 5
