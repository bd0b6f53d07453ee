"""Keys and values in 8 bits: off by what rounding costs, the same bits alone and beside others, a quarter of the memory."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree, difference
from law import check_law, model_of
from models import random_model

import nanollm_jax as nano
from nanollm_jax.cache import rounded
from nanollm_jax.engine import buckets, memory
from nanollm_jax.measure.plan import make_plan

SHORT = 16
forward = jax.jit(nano.forward, static_argnames="config")


def in_8_bits(model):
    return replace(model, cache="int8")


def test_a_vector_is_off_by_half_a_step_at_most():
    """Of each token and head by itself, zeros and large numbers beside each other; what was kept is kept again as it is."""
    vectors = np.random.default_rng(0).normal(size=(2, 3, 4, 10)).astype(np.float32)
    vectors *= np.array([1e-20, 1.0, 1e20], np.float32)[None, :, None, None]
    vectors[0, 1, 2] = 0
    buffer = rounded.empty((8, 3, 10), np.float32, "int8", lambda letters: None)
    kept = rounded.keep(buffer, jnp.asarray(vectors))
    found, step = np.asarray(rounded.read(kept)), np.abs(vectors).max(-1, keepdims=True) / 127
    assert (np.abs(found - vectors) <= 0.5001 * step).all() and kept.values.dtype == np.int8
    assert kept.scale.shape == (2, 3, 4) and kept.nbytes == vectors.size + 4 * vectors.size // 10
    np.testing.assert_array_equal(rounded.keep(buffer, jnp.asarray(found)).values, kept.values)


def test_an_embedding_is_made_with_the_cache_that_the_model_has():
    model = random_model("llama")
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 20).tolist()
    cache = nano.init_cache(model.config, 1, len(ids), jnp.float32, kept="int8")
    inside = jax.jit(nano.harvest(nano.forward, ("final_norm",)), static_argnames="config")
    _, values = inside(model.params, jnp.asarray([ids]), cache, config=model.config)
    found = [nano.embed(one, [ids], normalize=False)[0] for one in (in_8_bits(model), model)]
    agree(found[0], np.asarray(values["final_norm"][0], np.float64).mean(0), 1e-4)
    assert 1e-4 < difference(*found) < 0.1


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "deepseek_v3"])
def test_pieces_and_steps_give_what_one_pass_gives(family):
    """Full layers, rings and latents: what a token sees is rounded wherever it came from."""
    # no experts: of rounded keys a router may choose others
    dense = {"first_k_dense_replace": 3} if family == "deepseek_v3" else {}
    model = random_model(family, **dense)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 24)).astype(np.int32)
    make = lambda kept: nano.init_cache(model.config, 2, 40, jnp.float32, kept=kept)  # noqa: E731
    whole, _ = forward(model.params, tokens, make("int8"), config=model.config)
    exact, _ = forward(model.params, tokens, make("auto"), config=model.config)
    assert 1e-4 < difference(whole, exact) < 0.1
    cache, found = make("int8"), []
    for piece in (tokens[:, :9], tokens[:, 9:16], *np.split(tokens[:, 16:], 8, axis=1)):
        logits, cache = forward(model.params, piece, cache, config=model.config)
        found.append(logits)
    # a sum of another order may round a number to its neighbour
    agree(np.concatenate(found, axis=1), whole, 2e-2)
    agree(np.concatenate(found, axis=1)[:, :9], whole[:, :9], 1e-4)
    assert "int8" in repr(cache) and cache.nbytes < 0.6 * make("auto").nbytes


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        *(pytest.param(name, marks=pytest.mark.parity) for name in ("gemma3_text", "gemma4_text", "deepseek_v3")),
    ],
)
def test_the_law_of_load_holds_in_8_bits(family, monkeypatch):
    """Blocks of prefixes are kept and restored as they are: ==, whatever is cached."""
    model = in_8_bits(model_of(family))
    monkeypatch.setitem(buckets.TOGETHER, "cpu", 2 * SHORT)
    engine = check_law(model, 12, 2, piece=SHORT)
    assert "hit" in {event.what for event in engine.events}
    assert jax.tree.leaves(engine.pool)[0].dtype == np.int8


@pytest.mark.parametrize("family", ["gemma3_text", "gemma4_text", "deepseek_v3"])
def test_bytes_are_those_that_are_planned(family):
    """Of a full layer and a ring, of layers that look at those, and of latents, as they are and in 8 bits."""
    model = model_of(family)
    for one in (model, in_8_bits(model)):
        engine_bytes = memory.needed(one, 2, 256)
        plan = make_plan(one.config, batch=2, context=256, dtype="float32", cache=one.cache)
        cache = nano.init_cache(one.config, 2, 256, jnp.float32, kept=one.cache)
        assert plan.cache == cache.nbytes and engine_bytes == plan.cache + plan.state
    with pytest.raises(nano.ConfigError, match="cache is 'int3'; expected auto or int8"):
        nano.load(cache="int3")


@pytest.mark.parity  # a long text: 15 s
def test_long_texts_lose_little():
    """The bundled model on its own stories: as likely within half a percent, to the end of its context."""
    model = nano.load(dtype="float32")
    sampling = nano.Sampling(temperature=0.8)
    stories = nano.generate(model, "Once upon a time", max_new_tokens=170, sampling=sampling, seed=3, n=4)
    text = "\n".join(f"Once upon a time{story.text}" for story in stories)
    plain, eight = (nano.score(one, text, rows=1) for one in (model, in_8_bits(model)))
    assert len(plain.logprobs) > 300
    assert plain.logprobs != eight.logprobs and abs(eight.perplexity / plain.perplexity - 1) < 5e-3
    assert np.abs(np.subtract(plain.logprobs, eight.logprobs)).mean() < 0.02


@pytest.mark.parity
def test_tools_that_make_a_cache_keep_it_as_the_model_does():
    """A pass over a text, a tree, a lab: what observe and generate give of this model, in 8 bits too."""
    one = in_8_bits(model_of("llama"))
    ids = [5, 6, 7, 5, 6, 7, 9]
    logits, exact = (np.asarray(nano.observe(model, ids)[0])[0, -1] for model in (one, replace(one, cache="auto")))
    assert difference(logits, exact) > 1e-4
    chances = np.exp(np.asarray(jax.nn.log_softmax(logits)))
    root = nano.glass.tree(one, ids, width=3, depth=2, rows=2)
    agree([child.probability for child in root.children], np.sort(chances)[:-4:-1], 1e-5)
    best = root.children[0].token
    who = nano.glass.contributions(one, ids, best)
    agree(who.logit, logits[best], 1e-5)
    agree(who.total, logits[best], 1e-5)
    lab = nano.glass.sampling_lab(one, ids, [nano.Sampling(temperature=0)], seeds=[0], max_new_tokens=6).answers[0][0]
    answer = nano.generate(one, [ids], max_new_tokens=6)[0]
    assert lab.token_ids == answer.token_ids
    agree(lab.logprobs, answer.logprobs, 1e-5)


def test_gradients_pass_what_is_rounded():
    """As if keys and values were kept as they are: half of what a token hangs on comes through them."""
    model = random_model("llama")
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 12)).astype(np.int32)

    def last(params, kept):
        cache = nano.init_cache(model.config, 2, 12, jnp.float32, kept=kept)
        return jnp.sum(jnp.sin(nano.forward(params, tokens, cache, config=model.config)[0][:, -1]))

    slopes = jax.jit(jax.grad(last), static_argnums=1)
    found, exact = (slopes(model.params, kept)["layers"][0]["attention"]["wqkv"] for kept in ("int8", "auto"))
    assert all(
        0 < difference(a, b) < 0.1 for a, b in zip(np.moveaxis(found, 1, 0), np.moveaxis(exact, 1, 0), strict=True)
    )


@pytest.mark.parity
def test_on_a_mesh_with_guesses_and_watched():
    """The tokens of one device, of every path to write them."""
    one = in_8_bits(model_of("llama"))
    prompts = [[5, 6, 7, 5, 6, 7], [9, 8]]
    expected = nano.generate(one, prompts, max_new_tokens=20)
    many = nano.shard(one, nano.make_mesh(2, 2))
    for found in (
        nano.generate(many, prompts, max_new_tokens=20),
        nano.generate(one, prompts, max_new_tokens=20, speculate="lookup:3"),
    ):
        assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    box = nano.watch(one, prompts, keep=["layers.0.attention.weights"], max_new_tokens=20)
    assert [row.token_ids for row in box.answers] == [row.token_ids for row in expected]
