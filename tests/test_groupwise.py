"""Weights in groups of whole numbers: what is computed is what scale * number + offset says, in every form that there is."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from agreement import agree
from models import LLAMA, forward, random_model

import nanollm_jax as nano
from nanollm_jax import params as parameters
from nanollm_jax.dtypes import DTYPES, resolve_weights
from nanollm_jax.ops import int8
from nanollm_jax.ops.embedding import look_up
from nanollm_jax.ops.groupwise import Groupwise
from nanollm_jax.ops.groupwise_making import groupwise, quantize
from nanollm_jax.ops.kept import Kept, letters_of, name_of, parted
from nanollm_jax.ops.linear import linear, product

rng = np.random.default_rng(0)


def some(*shape, groups, bits=4, scales="float32", offsets=None, outputs=1):
    """Numbers, scales and offsets, the weight that they are in float64, and the kind that is made of them."""
    numbers = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
    made = lambda dtype: rng.normal(size=(*shape[:outputs], groups)).astype(getattr(ml_dtypes, dtype, dtype))  # noqa: E731
    scale, offset = made(scales), None if offsets is None else made(offsets)
    rows = numbers.reshape(*shape[:outputs], groups, math.prod(shape[outputs:]) // groups)
    exact = rows * scale.astype(float)[..., None] + (0 if offset is None else offset.astype(float)[..., None])
    return exact.reshape(shape), groupwise(numbers, scale, offset, bits=bits, dtype="float32")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("shape", "outputs", "groups", "group"),
    [((6, 64), 1, 2, 32), ((5, 128), 1, 1, 128), ((2, 3, 4, 36), 3, 3, 12), ((4, 3, 80), 1, 5, 16), ((4, 6, 20), 1, 1, 20),
     ((3, 14), 1, 2, 7)],
)  # fmt: skip
def test_a_weight_is_what_was_given(shape, outputs, groups, group, bits):
    """Groups of one output's inputs in their order, also across axes; of an odd size too, for which 4 bits are 8."""
    for scales, offsets in (
        ("float32", None),
        ("float16", "float32"),
        ("bfloat16", "bfloat16"),
        ("float32", "float16"),
    ):
        exact, weight = some(*shape, groups=groups, bits=bits, scales=scales, offsets=offsets, outputs=outputs)
        agree(weight.decoded(), exact, 1e-6)
        assert weight.shape == shape and weight.group == group and weight.scale.dtype == scales
        assert weight.bits == (4 if bits == 4 and group % 2 == 0 else 8) and name_of(weight) == f"int{weight.bits}"
        assert weight.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(weight))
        assert weight.values.nbytes == math.prod(shape) * weight.bits // 8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offsets", [None, "float32"])
@pytest.mark.parametrize(("groups", "scales"), [(3, "float16"), (2, "float32"), (1, "bfloat16")])
def test_the_product_is_that_of_the_weight(groups, scales, bits, offsets):
    """Of few rows and many, of outputs that fill blocks and do not, in each form."""
    for rows, outputs in ((1, 1), (1, 600), (2, 70), (16, 301), (17, 256), (50, 257)):
        exact, weight = some(outputs, 96, groups=groups, bits=bits, scales=scales, offsets=offsets)
        x = rng.normal(size=(rows, 96)).astype(np.float32)
        size = np.abs(x.astype(float)) @ np.abs(exact).T
        agree(jax.jit(product)(x, weight), x.astype(float) @ exact.T, 1e-4, size=size)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_activations_may_have_16_bits(dtype):
    exact, weight = some(70, 64, groups=2, offsets="float32")
    x = jnp.asarray(rng.normal(size=(3, 64)), dtype)
    size = np.abs(np.asarray(x, float)) @ np.abs(exact).T
    agree(product(x, weight), np.asarray(x, float) @ exact.T, 1e-2, size=size)


def test_many_axes_and_rows_of_a_table():
    exact, weight = some(4, 5, 32, groups=2, outputs=2, offsets="float16")
    x, bias = rng.normal(size=(2, 3, 32)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    agree(linear(jnp.asarray(x), weight, jnp.asarray(bias)), np.einsum("BTI,NHI->BTNH", x, exact) + bias, 1e-4)
    exact, table = some(7, 32, groups=2, offsets="float16")
    agree(look_up(table, np.array([[0, 6], [3, 9]])), exact[[[0, 6], [3, 6]]], 1e-6)


@pytest.mark.parametrize("rows", [1, 20])
def test_gradients_are_those_of_the_weight(rows):
    exact, weight = some(7, 64, groups=2, offsets="float32")
    x, given = rng.normal(size=(rows, 64)).astype(np.float32), rng.normal(size=(rows, 7)).astype(np.float32)
    numbers = np.asarray(groupwise(rng.integers(0, 1, (7, 64)), np.ones((7, 2)), bits=4, dtype="float32").decoded())
    assert not numbers.any()
    agree(jax.grad(lambda x: jnp.sum(product(x, weight) * given))(jnp.asarray(x)), given @ exact, 1e-5)
    slopes = jax.grad(lambda w: jnp.sum(product(jnp.asarray(x), w) * given), allow_int=True)(weight)
    agree(slopes.offset, np.einsum("RO,RGI->OG", given, x.reshape(rows, 2, 32)), 1e-5)


def test_a_group_may_be_divided():
    """As a mesh asks for: exactly the same weight."""
    for bits, inputs, group in ((4, 16, 16), (4, 96, 32), (8, 24, 8)):
        exact, weight = some(5, 96, groups=3, bits=bits, scales="float16", offsets="float32")
        found = parted(weight, inputs)
        np.testing.assert_array_equal(found.decoded(), weight.decoded())
        assert found.group == group and found.bits == bits
    for inputs in (12, 3):  # of which a group would be 4 or 1
        np.testing.assert_array_equal(np.asarray(parted(weight, inputs)), np.asarray(weight.decoded()))
    plain = jnp.ones((2, 4))
    assert parted(plain, 2) is plain


def test_rounding_leaves_less_than_with_the_largest_number_as_scale():
    """In squares; of zeros nothing; an outlier is its own group's alone; what is tiny or huge is as near."""
    weight = rng.normal(size=(6, 5, 64)).astype(np.float32)
    weight[0, 0, 3] *= 100
    weight[1] *= 1e-30
    weight[2] *= 1e30
    weight[3, 2] = 0
    found = quantize(jnp.asarray(weight), bits=4, group=32)
    rows = weight.reshape(6, 5, 2, 32).astype(float)
    step = np.abs(rows).max(-1, keepdims=True) / 7
    step = np.where(step == 0, 1, step)
    kept = np.asarray(found.decoded(), float).reshape(rows.shape)
    ours, plain = (np.sum(((w - rows) / step) ** 2, -1) for w in (kept, np.round(rows / step) * step))
    assert ours.sum() < 0.8 * plain.sum() and (ours <= 1.2 * plain).all() and not kept[3, 2].any()
    eight = np.asarray(quantize(jnp.asarray(weight), bits=8, group=32).decoded(), float).reshape(rows.shape)
    assert np.abs((eight - rows) / step).max() < 0.1 and found.scale.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("letters", "shape"), [("K Q H D", (2, 3, 4, 64)), ("D N H", (5, 3, 48)), ("D F", (6, 36)), ("D F", (6, 7))]
)
def test_a_weight_says_of_itself_what_others_ask(letters, shape):
    """Bytes as the table of dtypes counts them, where groups of 32 divide and where they do not."""
    outputs = parameters.outputs(f"layers.0.attention.{'wo' if letters == 'D N H' else 'wqkv'}", letters)
    weight = parameters.MAKERS["int4"](jnp.asarray(rng.normal(size=shape), jnp.float32), outputs=outputs)
    assert isinstance(weight, Kept) and weight.shape == shape and DTYPES["int4"].nbytes(shape, outputs) == weight.nbytes
    named = letters_of(weight, letters)
    assert jax.tree.structure(named) == jax.tree.structure(weight) and set(jax.tree.leaves(named)) == {letters}
    assert resolve_weights("int4", auto="bfloat16").activations == ml_dtypes.bfloat16


def in_4_bits(config):
    """A random model in 4 bits, and the same with its rounded weights in float32."""
    params = nano.init_params(config, jax.random.key(7), "int4")
    plain = {path: array.decoded() if isinstance(array, Groupwise) else array
             for path, array in parameters.flatten(params).items()}  # fmt: skip
    return nano.Model(config, params), nano.Model(config, parameters.nest(plain))


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("llama", {16, 8}), pytest.param("gemma4_text", {32, 12, 20, 44, 8, 10}, marks=pytest.mark.parity)],
)
def test_a_model_computes_what_its_rounded_weights_say(family, sizes):
    """Groups of 16, of 8, and of all inputs; of layers with widths of their own, and what layers are told."""
    four, plain = in_4_bits(random_model(family).config)
    groups = {array.group for array in parameters.flatten(four.params).values() if isinstance(array, Groupwise)}
    assert groups == sizes and four.dtype.name == "int4"
    assert four.nbytes == sum(parameters.nbytes(four.config, four.dtype).values())
    tokens = rng.integers(0, four.config.vocab_size, (2, 20), dtype=np.int32)

    def scores(model):
        cache = nano.init_cache(model.config, 2, 64, "float32")
        found, cache = forward(model.params, tokens, cache, config=model.config)
        return np.asarray(found), np.asarray(forward(model.params, tokens[:, :1], cache, config=model.config)[0])

    for ours, theirs in zip(scores(four), scores(plain), strict=True):
        agree(ours, theirs, 2e-3)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("mesh", "width"),
    [((1, 3), 72), ((2, 2), 64), ((1, 4), 72)],
)
def test_on_a_mesh(mesh, width):
    """The same tokens, where groups lie whole on a device, where they are divided, and where widths are made up."""
    config, _ = nano.read_config(LLAMA | {"intermediate_size": width})
    four, _ = in_4_bits(config)
    over = nano.shard(four, nano.make_mesh(*mesh))
    one, many = (nano.generate(model, [[5, 6, 7, 8], [9, 10]], max_new_tokens=12) for model in (four, over))
    assert [row.token_ids for row in one] == [row.token_ids for row in many]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_matrix_is_rounded_in_parts_as_it_is_whole(dtype):
    kept, array = resolve_weights(dtype), jnp.asarray(rng.normal(size=(2, 5, 96)), jnp.float32)
    parts = [((u, at, 0), array[u : u + 1, at : at + 2]) for u in range(2) for at in (0, 2, 3)]
    found = parameters.filler(kept, 2)(array.shape, lambda outputs: iter(parts))
    jax.tree.map(np.testing.assert_array_equal, found, parameters.MAKERS[dtype](array, outputs=2))


@pytest.mark.parity
def test_loading_onto_a_mesh_divides_what_is_loaded():
    mesh = nano.make_mesh(1, 2)
    loaded, sharded = nano.load(dtype="int4", mesh=mesh), nano.shard(nano.load(dtype="int4"), mesh)

    for path, ours in parameters.flatten(loaded.params).items():
        theirs = parameters.flatten(sharded.params)[path]
        agreed = lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim) and a.shape == b.shape  # noqa: E731
        assert all(jax.tree.leaves(jax.tree.map(agreed, ours, theirs))), path
        if not path.endswith(
            "down"
        ):  # of which each device has half a group more than whole ones; a sum may end otherwise
            equal = jax.tree.map(lambda a, b: np.mean(np.asarray(a) == np.asarray(b)), ours, theirs)
            assert min(jax.tree.leaves(equal)) > 0.99, path


@pytest.mark.parametrize("kind", ["table", "float8"])
def test_numbers_that_are_not_whole_are_multiplied_as_what_they_are(kind):
    """Of few rows too, for which whole numbers have a product in C."""
    numbers = rng.integers(-8, 8, (5, 64))
    weight = groupwise(numbers, np.ones((5, 1), np.float32), bits=4, dtype="float32")
    if kind == "table":
        weight = dataclasses.replace(weight, table=tuple(0.5 + np.arange(16.0) ** 2))
    else:
        weight = dataclasses.replace(weight, values=jnp.asarray(numbers / 16, ml_dtypes.float8_e4m3fn), bits=8)
    exact = 0.5 + (numbers + 8.0) ** 2 if kind == "table" else numbers / 16
    x = rng.normal(size=(2, 64)).astype(np.float32)
    agree(product(jnp.asarray(x), weight), x.astype(float) @ exact.T, 1e-5)


@pytest.mark.parametrize("rows", [4, 40])
@pytest.mark.parametrize("make", [lambda w: quantize(w, 4, 32), lambda w: int8.quantize(w, 1)], ids=["int4", "int8"])
def test_a_gradient_keeps_no_weight_decoded(make, rows):
    """What is kept until the last is needed again is in few bits: in float32 it would be five, with those that are at work."""
    weights = [make(jnp.asarray(rng.normal(size=(608, 608)), jnp.float32)) for _ in range(5)]

    def last(x, weights):
        for weight in weights:
            x = jnp.tanh(0.04 * product(x, weight))
        return jnp.sum(x)

    x = jnp.asarray(rng.normal(size=(rows, 608)), jnp.float32)
    program = jax.jit(jax.grad(last)).lower(x, weights).compile()
    assert program.memory_analysis().temp_size_in_bytes < 3.5 * 4 * 608**2
    plain = [np.asarray(product(jnp.eye(608), weight)).T for weight in weights]
    agree(program(x, weights), jax.grad(last)(x, plain), 1e-3)
