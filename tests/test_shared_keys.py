"""Layers that look at an earlier one's keys and values, and what layers are told of a token besides the stream."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import random_model

import nanollm_jax as nano
from nanollm_jax import layout
from nanollm_jax.cache import Plain, Ring, Shared
from nanollm_jax.glass import cache_view
from nanollm_jax.measure import plan, roofline
from nanollm_jax.ops import attention, embedding, mlp

TOKENS = np.random.default_rng(0).integers(0, 60, (2, 13)).astype(np.int32)


@pytest.fixture(scope="module")
def shared():
    """The second layer, with a ring, lends to the third."""
    layers = nano.LayerConfig(), nano.LayerConfig(window=4), nano.LayerConfig(window=4, keys_of=1)
    config = nano.ModelConfig(
        vocab_size=60, hidden_size=24, num_heads=6, num_kv_heads=3, head_dim=4, intermediate_size=20, max_positions=64,
        layers=layers, qk_norm="head", qkv_bias=True,
    )  # fmt: skip
    return nano.Model(config, nano.init_params(config, jax.random.key(1), jnp.float32))


def in_pieces(forward, model):
    """Logits of a text in pieces of 5 and 4 and single tokens, past the window, and the cache."""
    cache, found = nano.init_cache(model.config, 2, 16, jnp.float32), []
    for begin, end in ((0, 5), (5, 9), *((at, at + 1) for at in range(9, 13))):
        given = forward(model.params, TOKENS[:, begin:end], cache, config=model.config)
        logits, cache = given[0] if isinstance(given[0], tuple) else given
        found.append(logits)
    return jnp.concatenate(found, axis=1), cache


def test_it_is_a_layer_whose_new_keys_and_values_are_the_others(shared):
    """Of a model whose third layer makes keys of its own, these edited to be those of the second: the same logits."""
    config = dataclasses.replace(shared.config, layers=(*shared.config.layers[:2], nano.LayerConfig(window=4)))
    params = nano.init_params(config, jax.random.key(2), jnp.float32)
    theirs, ours = dict(params["layers"][2]["attention"]), shared.params["layers"][2]["attention"]
    R = config.sizes["R"]
    for name in ("wqkv", "bqkv"):
        assert ours[name].shape[1] == R and theirs[name].shape[1] == R + 2
        theirs[name] = theirs[name].at[:, :R].set(ours[name])
    theirs |= {name: ours[name] for name in ("wo", "q_norm")}
    assert "k_norm" not in ours
    last = shared.params["layers"][2] | {"attention": theirs}
    whole = nano.Model(config, shared.params | {"layers": (*shared.params["layers"][:2], last)})
    change = {
        f"layers.2.attention.{one}": lambda value, seen, one=one: seen[f"layers.1.attention.{one}"] for one in "kv"
    }
    edited = jax.jit(nano.harvest(nano.forward, (), change), static_argnames="config")
    expected, full = in_pieces(edited, whole)
    found, cache = in_pieces(jax.jit(nano.forward, static_argnames="config"), shared)
    agree(found, expected, 1e-5)
    assert [type(layer) for layer in cache.layers] == [Plain, Ring, Shared] and cache.lent is None
    assert cache.nbytes == sum(layer.nbytes for layer in full.layers[:2])
    assert [one.kind for one in cache_view(cache).layers] == ["plain", "ring", "shared"]
    with pytest.raises(nano.RequestError, match=r"no value is named layers.2.attention.k"):
        nano.observe(shared, TOKENS[0].tolist(), change={"layers.2.attention.k": jnp.zeros_like})


def test_what_is_kept_and_read_is_counted():
    """Of gemma4_text, two of whose four layers look at the first two: 2 heads, 12 and 20 wide, and a window of 6."""
    config = random_model("gemma4_text").config
    vectors = 2 * 2 * 12, 2 * 2 * 20
    assert layout.row_nbytes(config, 100, 4)[0] == 4 * (6 * vectors[0] + 100 * vectors[1])
    few, many = (roofline.part_bytes(config, 3, length, "float32")["cache"] for length in (8, 99))
    assert (few, many) == (
        3 * 4 * ((7 + 6) * vectors[0] + (10 + 9) * vectors[1]),
        12 * (13 * vectors[0] + 201 * vectors[1]),
    )
    made = plan.make_plan(config, batch=2, context=100, dtype="float32")
    assert (made.cache, made.again) == (2 * 4 * (6 * vectors[0] + 100 * vectors[1]),) * 2
    one, two = (roofline.part_bytes(config, rows, 0, "float32")["embedding"] for rows in (1, 2))
    assert two - one == 4 * 40  # of the table one row a row; the projection and its norm once
    assert one == 4 * (40 + 40 * 32 + 10)
    # tokens past the window: in each of two layers of either kind scores and sums, of one more position in the full ones
    more = roofline.prompt_flops(config, 1, 31) - roofline.prompt_flops(config, 1, 30)
    less = roofline.prompt_flops(config, 1, 21) - roofline.prompt_flops(config, 1, 20)
    assert more - less == 2 * 4 * 4 * 20 * 10


def test_what_a_layer_is_told():
    """By hand: the mean, times sqrt(2), of a row of a table and of what the embedding says, normalised layer by layer."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    table, projection, scale, x = draw(9, 12), draw(12, 5), draw(4), draw(2, 3, 5)
    ids = np.array([[1, 8, 0], [4, 4, 2]])
    p = {"tokens": jnp.asarray(table), "projection": jnp.asarray(projection), "norm": {"scale": jnp.asarray(scale)}}
    said = ((x @ projection.T) / np.sqrt(5)).reshape(2, 3, 3, 4)
    said = said / np.sqrt((said**2).mean(-1, keepdims=True) + 1e-5) * (1 + scale)
    told = (said + table[ids].reshape(2, 3, 3, 4) * 2) / np.sqrt(2)
    found = embedding.inputs(p, jnp.asarray(ids), jnp.asarray(x), 3, 1e-5, 1.0)
    agree(np.stack(found, 2), told)
    assert embedding.inputs(None, ids, x, 3, 1e-5, 1.0) == ()
    down, up = draw(4, 5), draw(5, 4)
    given = mlp.let_in({"down": jnp.asarray(down), "up": jnp.asarray(up)}, jnp.asarray(x), found[1], "relu")
    agree(given, (np.maximum(x @ down.T, 0) * told[:, :, 1]) @ up.T)


def test_queries_alone_have_no_keys():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3, 2, 5, 4)), jnp.float32)
    q, k, v, gate = attention.split_heads(x, beside=0)
    np.testing.assert_array_equal(q, np.asarray(x).reshape(2, 3, 10, 4))
    assert k.shape == v.shape == (2, 3, 0, 4) and gate is None


@pytest.mark.parity
def test_scores_and_embeddings_are_those_of_one_pass():
    """Of a text longer than the window, read with another beside it."""
    model = random_model("gemma4_text")
    ids = np.random.default_rng(1).integers(0, 83, 40).tolist()
    inside = jax.jit(nano.harvest(nano.forward, ("final_norm",)), static_argnames="config")
    cache = nano.init_cache(model.config, 1, len(ids), jnp.float32)
    (logits, _), values = inside(model.params, jnp.asarray([ids]), cache, config=model.config)
    expected = np.asarray(jax.nn.log_softmax(logits[0]))[np.arange(39), ids[1:]]
    agree(nano.score(model, [ids, ids[::-1]])[0].logprobs, expected, 1e-4)
    agree(nano.embed(model, [ids, ids[:9]], normalize=False)[0], np.asarray(values["final_norm"][0]).mean(0), 1e-4)
