"""The model as a Flax module: what users of Flax do with any module, and the numbers are ours."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import CONFIG_JSON, FURTHER, HYBRIDS, random_model

import nanollm_jax as nano

nnx = pytest.importorskip("flax.nnx")

from nanollm_jax.integrations.flax import Transformer, arrays  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 89, (2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    return random_model("mistral")  # rings


@pytest.fixture
def module(model):
    return Transformer(model.config, model.params)


def logits_of(params, config):
    cache = nano.init_cache(config, *TOKENS.shape, jnp.float32)
    return nano.forward(params, TOKENS, cache, config=config)[0]


@nnx.jit
def read(module, tokens):
    return module(tokens)


@nnx.jit
def extend(module, tokens):
    return module.extend(tokens)


def loss(module, tokens):
    """Of the next token; the mean over all."""
    logprobs = jax.nn.log_softmax(module(tokens[:, :-1]))
    return -jnp.mean(jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1))


def test_jit(model, module):
    """nnx.jit: the logits of forward, and its cache is state that a call changes."""
    agree(read(module, TOKENS), logits_of(model.params, model.config), 1e-5)
    module.init_cache(batch=2, capacity=32)
    pieces = [extend(module, TOKENS[:, :8]), extend(module, TOKENS[:, 8:])]
    agree(jnp.concatenate(pieces, axis=1), logits_of(model.params, model.config), 1e-5)
    assert module.cache.length[...].tolist() == [9, 9]


def test_tokens(model, module):
    """Greedy answers written with the cache in nnx state, past the window: those of generate."""
    greedy = nano.Sampling(temperature=0.0)
    answers = nano.generate(model, TOKENS[:, :8].tolist(), max_new_tokens=14, sampling=greedy, rows=1)
    module.init_cache(batch=2, capacity=32)
    token, found = extend(module, TOKENS[:, :8])[:, -1:].argmax(-1), []
    for _ in range(14):
        found.append(token)
        token = extend(module, token.astype(jnp.int32)).argmax(-1)
    assert jnp.concatenate(found, axis=1).tolist() == [answer.token_ids for answer in answers]


@pytest.mark.parity
def test_grad(model, module):
    """nnx.grad gives a state of nnx.Param that is jax.grad's tree; a step of an nnx.Optimizer goes down."""
    import optax

    def plain(params):
        cache = nano.init_cache(model.config, 2, TOKENS.shape[1] - 1, jnp.float32)
        logits, _ = nano.forward(params, TOKENS[:, :-1], cache, config=model.config)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[:, 1:, None], axis=-1))

    step = nnx.jit(nnx.value_and_grad(loss))
    before, gradient = step(module, TOKENS)
    expected = jax.jit(jax.grad(plain))(model.params)
    found = nnx.merge(nnx.split(module)[0], gradient).tree()
    jax.tree.map(lambda ours, theirs: agree(ours, theirs, 1e-4), found, expected)
    optimizer = nnx.Optimizer(module, optax.sgd(0.05), wrt=nnx.Param)
    optimizer.update(module, gradient)
    assert step(module, TOKENS)[0] < before


def test_state_to_files_and_back(model, module, tmp_path):
    """nnx.state, nnx.split and nnx.merge; from a state to our tree, to safetensors, and to a state again."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    assert not jax.tree.leaves(rest) and len(jax.tree.leaves(params)) == len(jax.tree.leaves(model.params))
    doubled = jax.tree.map(lambda array: 2 * array, params)
    tree = nnx.merge(graph, doubled, rest).tree()
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, 2 * theirs), tree, model.params)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_JSON["mistral"]))
    saved = nano.save(dataclasses.replace(model, params=tree, folder=tmp_path), tmp_path / "saved")
    back = nano.load(saved, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(Transformer(back.config, back.params)), doubled)
    module.init_cache(batch=1, capacity=8)
    kept = nnx.state(module, nnx.Cache)
    assert len(jax.tree.leaves(kept)) == 2 * model.config.num_layers + 1
    nnx.update(module, jax.tree.map(jnp.ones_like, kept))
    assert module.cache.length[...].tolist() == [1] and arrays(module.cache).layers[0].k.min() == 1


def test_8_bits():
    """Whole numbers stay as they are, and gradients of the others go through them."""
    config = random_model("gpt2").config
    params = nano.init_params(config, jax.random.key(3), "int8")
    module = Transformer(config, params)
    assert jax.tree.structure(module.tree()) == jax.tree.structure(params)
    gradient = nnx.to_flat_state(nnx.jit(nnx.grad(loss))(module, TOKENS))
    assert "values" not in {path[-1] for path, _ in gradient} and "scale" in {path[-1] for path, _ in gradient}
    path = ("params", "layers", 0, "attention_norm", "scale")  # below every matrix
    assert np.abs(dict(gradient)[path][...]).min() > 0


def test_errors(model, module):
    with pytest.raises(nano.RequestError, match=r"no cache yet; call init_cache\(batch, capacity\) first"):
        module.extend(TOKENS)
    with pytest.raises(nano.RequestError, match="tokens go from -1 to"):
        module(TOKENS - 1 - TOKENS.min())
    with pytest.raises(nano.CheckpointError, match="parameters do not match"):
        Transformer(random_model("gpt2").config, model.params)
    mesh = nano.shard(model, nano.make_mesh(tp=1))
    with pytest.raises(nano.RequestError, match="on a mesh"):
        Transformer(mesh.config, mesh.params)


@pytest.mark.parity
@pytest.mark.parametrize("family", [name for name in HYBRIDS if name in FURTHER])
def test_states_of_recurrent_layers_are_state(family):
    """Piece by piece what the whole text gives, and the gradient through them is that of the function."""
    model, tokens = random_model(family), TOKENS % 83
    module = Transformer(model.config, model.params)

    def logits(params):
        cache = nano.init_cache(model.config, *tokens.shape, jnp.float32)
        return nano.forward(params, tokens, cache, config=model.config)[0]

    module.init_cache(batch=2, capacity=32)
    pieces = [extend(module, tokens[:, :4]), extend(module, tokens[:, 4:5]), extend(module, tokens[:, 5:])]
    agree(jnp.concatenate(pieces, axis=1), jax.jit(logits)(model.params), 1e-5)
    mean = lambda x: jnp.mean(jnp.square(x))  # noqa: E731
    mine = nnx.jit(nnx.grad(lambda module: mean(module(tokens))))(module)
    theirs = jax.jit(jax.grad(lambda params: mean(logits(params))))(model.params)
    for found, expected in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        agree(found, expected, 1e-4, size=1)
