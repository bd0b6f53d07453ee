"""The glass box: every name is there, observing changes nothing, changing changes what it should."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import forward, random_model

import nanollm_jax as nano
from nanollm_jax.engine.timings import CompileWatch

TOKENS = jnp.asarray([[3, 14, 15, 9, 26]])
PER_LAYER = ["attention_norm", "attention.q", "attention.k", "attention.v", "attention.slots", "attention.scores",
             "attention.weights", "attention.mixed", "attention.out", "middle", "mlp_norm", "mlp.hidden", "mlp.out",
             "out"]  # fmt: skip


# names and values of gpt2 are looked at below; what is done with them is no other there, and with make parity
@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.parity)])
def model(request):
    return random_model(request.param)


def look(model, function=nano.forward, **change):
    cache = nano.init_cache(model.config, 1, 8, jnp.float32)
    return nano.observe(function, model.params, TOKENS, cache, config=model.config, change=change.get("change"))


@pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)
def test_every_value_worth_looking_at_has_its_name(model):
    names, cache = [], nano.init_cache(model.config, 1, 8, jnp.float32)

    @jax.jit  # which puts names in the order of the alphabet
    def seen(params):
        outputs, values = nano.observe(nano.forward, params, TOKENS, cache, config=model.config)
        names.extend(values)
        return outputs, values

    (logits, cache_behind), values = seen(model.params)
    layers = [f"layers.{layer}.{name}" for layer in range(2) for name in PER_LAYER]
    assert names == ["positions", "real", "embedding", *layers, "final_norm", "logits"]
    plain, plain_cache = forward(model.params, TOKENS, cache, config=model.config)
    agree(logits, plain, 1e-4)
    np.testing.assert_array_equal(values["logits"], logits)
    assert jax.tree.structure(cache_behind) == jax.tree.structure(plain_cache)


def test_the_names_mean_what_they_say(model):
    _, values = look(model)
    config = model.config
    G = config.num_heads // config.num_kv_heads
    weights = values["layers.1.attention.weights"]
    assert weights.shape == (1, config.num_kv_heads, G, 5, 5)  # nothing was before them
    agree(weights.sum(-1), np.ones(weights.shape[:-1]))
    new = np.asarray(weights)
    assert np.triu(new, 1).max() == 0  # nobody looks ahead
    assert new.min(axis=(0, 1, 2))[4, 4] > 0
    stream = values["layers.0.out"] + values["layers.1.attention.out"] + values["layers.1.mlp.out"]
    agree(values["layers.1.out"], stream)


def test_a_change_reaches_what_comes_after_and_nothing_before(model):
    (logits, _), values = look(model)
    (changed, _), after = look(model, change={"layers.1.mlp.out": jnp.zeros_like})
    np.testing.assert_array_equal(after["layers.1.mlp_norm"], values["layers.1.mlp_norm"])
    agree(after["layers.1.out"], values["layers.0.out"] + values["layers.1.attention.out"])
    assert np.abs(changed - logits).max() > 1e-3


def test_it_sees_through_jit_and_runs_inside_it(model):
    jitted = jax.jit(nano.forward, static_argnames="config")
    assert list(look(model, jitted)[1]) == list(look(model)[1])
    cache = nano.init_cache(model.config, 1, 8, jnp.float32)
    inside = jax.jit(lambda params, cache: nano.observe(nano.forward, params, TOKENS, cache, config=model.config)[1])
    agree(inside(model.params, cache)["layers.0.out"], look(model)[1]["layers.0.out"], 1e-4)


def test_a_second_look_compiles_nothing(model):
    look(model)
    with CompileWatch() as watch:
        look(model)
    assert watch.programs == 0


def test_nothing_is_missing_in_silence():
    """Over the decode loop and on a mesh all is there; compiled or without names there is an error that says what to do."""
    model = random_model("llama")
    config, params = model.config, model.params
    cache = nano.init_cache(config, 1, 8, jnp.float32)
    kept = jax.jit(nano.forward, static_argnames="config")
    plain = look(model)[1]
    kept(params, TOKENS, cache, config=config)
    assert list(look(model, kept)[1]) == list(plain)  # it was compiled before
    with pytest.raises(nano.RequestError, match="a program that was lowered has no names any more; pass the function"):
        nano.observe(kept.lower(params, TOKENS, cache, config=config).compile(), params, TOKENS, cache)
    state = nano.prefill(params, TOKENS, np.array([5]), cache, config=config)
    sampling, seeds = nano.Sampling().rows(1, config.vocab_size), np.zeros(1, np.uint32)
    (tokens, _, _), values = nano.observe(nano.decode, params, state, sampling, seeds, config=config, steps=2)
    assert values["layers.1.out"].shape == (2, 1, 1, config.hidden_size)  # one a step
    np.testing.assert_array_equal(values["token"].T, tokens)
    many = nano.shard(model, nano.make_mesh(1, 2))
    cache = nano.init_cache(many.config, 1, 8, jnp.float32, mesh=many.mesh)
    _, spread = nano.observe(nano.forward, many.params, TOKENS, cache, config=many.config)
    assert list(spread) == list(plain)
    agree(spread["layers.1.attention.weights"], plain["layers.1.attention.weights"], 1e-4)
    with pytest.raises(nano.RequestError, match="an argument has Model in it; expected arrays and trees of them"):
        nano.observe(nano.generate, model, "Once")
    with pytest.raises(nano.RequestError, match="nothing in this function has a name; take forward"):
        nano.observe(jnp.sin, jnp.ones(2))


def test_a_router_can_be_seen_and_turned():
    """Layers 0 and 2 have experts, of which each token takes two; with other chances it takes others."""
    model = random_model("qwen3_moe")
    cache = nano.init_cache(model.config, 1, 8, jnp.float32)

    @jax.jit  # else each operation is compiled by itself
    def seen(params, turned):
        change = {"layers.2.mlp.router": lambda chances: jnp.where(turned, 1 - chances, chances)}
        return nano.observe(nano.forward, params, TOKENS, cache, config=model.config, change=change)

    (logits, _), values = seen(model.params, False)
    chances = values["layers.2.mlp.router"]
    assert [name for name in values if "router" in name] == ["layers.0.mlp.router", "layers.2.mlp.router"]
    assert chances.shape == (1, 5, model.config.num_experts)
    agree(chances.sum(-1), np.ones((1, 5)))
    (turned, _), after = seen(model.params, True)
    np.testing.assert_array_equal(after["layers.2.mlp_norm"], values["layers.2.mlp_norm"])
    assert np.abs(turned - logits).max() > 1e-3


def test_tags_leave_nothing_in_the_lowered_program(model):
    cache = nano.init_cache(model.config, 1, 8, jnp.float32)
    function = jax.jit(nano.forward, static_argnames="config")
    assert "name=layers.0.attention.q" in str(
        jax.make_jaxpr(lambda cache: nano.forward(model.params, TOKENS, cache, config=model.config))(cache)
    )
    assert "layers.0.attention.q" not in function.lower(model.params, TOKENS, cache, config=model.config).as_text()


def test_refusals(model):
    with pytest.raises(
        nano.RequestError,
        match=r"no value is named layers\.9\.out; did you mean layers\..* The names are positions, real, embedding, layers",
    ):
        look(model, change={"layers.9.out": lambda x: x})
    with pytest.raises(nano.RequestError, match=r"the change of embedding gave float32\[1\]"):
        look(model, change={"embedding": lambda x: x[0, 0, :1]})


def test_a_model_and_a_text(model):
    """The logits and the values of forward over its ids."""
    logits, values = nano.observe(model, TOKENS[0].tolist(), change={"layers.0.out": jnp.tanh})
    (expected, _), others = look(model, change={"layers.0.out": jnp.tanh})
    agree(logits, expected, 1e-4)
    assert list(values) == list(others) and list(values)[:2] == ["positions", "real"]
    agree(values["layers.1.middle"], values["layers.0.out"] + values["layers.1.attention.out"], 1e-5)
    for wrong, said in (
        ("text", "no tokenizer"),
        ([[1], [2, 3]], "texts of the same length"),
        ([1] * 300, "256 positions"),
    ):
        with pytest.raises(nano.RequestError, match=said):
            nano.observe(model, wrong)


def test_forward_takes_lists_and_says_what_parameters_are(model):
    cache = nano.init_cache(model.config, 1, 8, jnp.float32)
    listed = nano.forward(model.params, TOKENS.tolist(), cache, config=model.config)[0]
    np.testing.assert_array_equal(listed, nano.forward(model.params, TOKENS, cache, config=model.config)[0])
    with pytest.raises(nano.RequestError, match=r"params is Model; expected .* model\.params"):
        nano.forward(model, TOKENS, cache, config=model.config)


def test_functions_that_cannot_be_called_are_named(model):
    """Before anything is traced where that can be known: what they take. And what needs numbers where there are none yet."""

    def refused(said, keep=(), change=None, jit=False):
        cache = nano.init_cache(model.config, 1, 8, jnp.float32)
        with pytest.raises(nano.RequestError, match=said):
            function = nano.harvest(nano.forward, keep, change)
            function = jax.jit(function, static_argnames="config") if jit else function
            function(model.params, TOKENS, cache, config=model.config)

    name = "layers.0.out"
    refused(
        r"the change of layers.0.out is a function of \(x\); expected one of \(value, seen\)",
        change={name: lambda x: x},
    )
    refused(r"a function of \(x, y\); expected one of \(value, seen, arrays\)", change={name: (lambda x, y: x, 1.0)})
    refused("is a tuple of 3; expected .edit, arrays.", change={name: (lambda x, y, z: x, 1.0, 2.0)})
    refused("is no function but float", change={name: 0.5})
    refused("what keeps layers.0.out is a function of", keep={name: lambda x: x})
    refused("keep is <function .*; expected patterns of names", keep=look)
    refused("gave nothing; return the value", change={name: lambda value, seen: None})
    for edit in (
        lambda value, seen: np.tanh(np.array(value)),
        lambda value, seen: -value if value[0, 0, 0] > 0 else value,
    ):
        refused("the change of layers.0.out asks for numbers that are there only when", change={name: edit}, jit=True)
    with pytest.raises(nano.RequestError, match=r"expected one of \(value\)"):
        look(model, change={name: lambda value, seen: value})
    with pytest.raises(nano.RequestError, match=r"the change of layers.0.out is a function of \(x\)"):
        nano.watch(model, [1, 2], change={name: lambda x: x})
