"""What a block does with every setting together, and where a text's length decides how it is read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import forward, random_model

import nanollm_jax as nano
from nanollm_jax.ropes import LongRopeScaling


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_halves_that_read_the_same_stream_are_scaled_and_normalised_too(norm, pre_norm):
    settings = {"parallel_residual": True, "post_norm": True, "pre_norm": pre_norm, "norm": norm, "residual_scale": 0.5}
    config = dataclasses.replace(random_model("gpt_neox").config, **settings)
    params = nano.init_params(config, jax.random.key(1), jnp.float32)
    cache = nano.init_cache(config, 1, 8, jnp.float32)
    inside = jax.jit(nano.harvest(nano.forward, "**"), static_argnames="config")
    _, seen = inside(params, jnp.asarray([[1, 2, 3]]), cache, config=config)
    for layer in range(config.num_layers):
        before = seen["embedding" if layer == 0 else f"layers.{layer - 1}.out"]
        halves = seen[f"layers.{layer}.attention.out"] + seen[f"layers.{layer}.mlp.out"]
        agree(seen[f"layers.{layer}.out"], before + 0.5 * halves)
        last = {name: np.asarray(leaf) for name, leaf in params["layers"][layer]["mlp_post_norm"].items()}
        undone = (np.asarray(seen[f"layers.{layer}.mlp.out"]) - last.get("bias", 0)) / last["scale"]
        agree(np.square(undone).mean(-1), np.ones((1, 3)), 1e-3)  # it was normalised last
        if not pre_norm:
            agree(seen[f"layers.{layer}.mlp_norm"], before)


@pytest.fixture(scope="module")
def phi():
    return random_model("phi3")  # longrope: 32 positions, and others beyond


def test_longrope_of_single_layers_switches_as_well(phi):
    config = phi.config
    first, *rest = config.layers
    apart = dataclasses.replace(config, layers=(dataclasses.replace(first, rope=None), *rest))
    assert isinstance(first.rope.scaling, LongRopeScaling) and config.switch_length == apart.switch_length == 32


def test_decode_does_not_lead_a_text_past_longropes_original_length(phi):
    tokens, lengths = np.ones((1, 16), np.int32), np.asarray([16])
    rows = nano.Sampling(temperature=0.0).rows(1, phi.config.vocab_size), np.zeros(1, np.uint32)

    def start():
        cache = nano.init_cache(phi.config, 1, 64, "float32")
        return nano.prefill(phi.params, tokens, lengths, cache, config=phi.config)

    *_, state = nano.decode(phi.params, start(), *rows, config=phi.config, steps=16)
    assert state.cache.length.tolist() == [32]
    with pytest.raises(nano.RequestError, match="17 more tokens lead a text past longrope's original length of 32"):
        nano.decode(phi.params, start(), *rows, config=phi.config, steps=17)


@pytest.mark.parity
def test_scores_of_longrope_do_not_depend_on_the_texts_beside(phi):
    """A text of 20 tokens beside one of 50, and one of 50 beside one of 20: as each alone, and as one forward of it."""
    texts = [list(range(1, 21)), list(range(5, 55))]
    together = nano.score(phi, texts, rows=2)
    for text, beside in zip(texts, together, strict=True):
        (alone,) = nano.score(phi, [text], rows=2)
        agree(alone.logprobs, beside.logprobs, 1e-5)
        logits, _ = forward(
            phi.params, np.asarray([text[:-1]]), nano.init_cache(phi.config, 1, 64, "float32"), config=phi.config
        )
        expected = np.asarray(jax.nn.log_softmax(logits))[0, np.arange(len(text) - 1), text[1:]]
        agree(alone.logprobs, expected, 1e-4)


def test_a_prompt_in_two_prefills_is_remembered_whole():
    """The penalties look at both parts, where the second goes on from the first one's state."""
    model = random_model("llama")
    make = lambda: nano.init_cache(model.config, 1, 64, "float32")  # noqa: E731
    both = np.asarray([[5, 6, 7, 8, 9, 10, 11, 12]])
    first = nano.prefill(model.params, both[:, :4], np.asarray([4]), make(), config=model.config)
    second = nano.prefill(model.params, both[:, 4:], np.asarray([4]), first, config=model.config)
    whole = nano.prefill(model.params, both, np.asarray([8]), make(), config=model.config)
    for one, other in zip(jax.tree.leaves(second.past), jax.tree.leaves(whole.past), strict=True):
        np.testing.assert_array_equal(one, other)
    agree(second.logits, whole.logits, 1e-4)
