"""The story of a watched generation against what generate, observe and the tools say; and the file that a report is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import random_model

import nanollm_jax as nano
from nanollm_jax import glass

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9]  # longer than the rings of mistral
ASKED = {"max_new_tokens": 7, "sampling": nano.Sampling(temperature=1.0), "seed": 5}


@pytest.fixture(scope="module")
def model():
    return random_model("mistral")


@pytest.fixture(scope="module")
def box(model):
    return nano.watch(model, PROMPT, keep=glass.for_report(model), **ASKED)


@pytest.fixture(scope="module")
def told(box):
    return glass.story(box)


def number(told, name):
    return told.arrays[name][1].astype(np.float64)


@pytest.fixture(scope="module")
def pass_over(model, box):
    """Logits and named values of one plain pass over the text, by the simplest way."""
    ids = box.tokens[0][:-1]
    cache = nano.init_cache(model.config, 1, len(ids), jnp.float32)
    (logits, _), values = nano.observe(nano.forward, model.params, jnp.asarray([ids]), cache, config=model.config)
    return np.asarray(jax.nn.log_softmax(logits[0])), values


def test_tokens_and_what_was_said(model, box, told, pass_over):
    answer = nano.generate(model, PROMPT, **ASKED)
    assert told.head["ids"] == [*PROMPT, *answer.token_ids] and told.head["given"] == len(PROMPT)
    assert told.head["settings"] == {"temperature": 1.0, "seed": 5, "max_new_tokens": 7, "finish_reason": "length"}
    logprobs, _ = pass_over
    ids = told.head["ids"]
    own = logprobs[np.arange(len(ids) - 1), ids[1:]]
    surprise = number(told, "surprise")
    assert np.isnan(surprise[0])
    agree(surprise[1:], -own, 1e-4)
    agree(-surprise[len(PROMPT) :], answer.logprobs, 1e-5)
    agree(number(told, "lens.chances")[-1], np.exp(-np.sort(-logprobs)[:, :5]), 2e-3)
    words = [[told.head["words"][word] for word in row] for row in told.arrays["lens.words"][1][-1]]
    assert words == [[f"{token}" for token in row] for row in np.argsort(-logprobs)[:, :5]]
    whole = glass.lens(model, ids[:-1], places="layers.0.out")
    agree(number(told, "lens.chances")[1], np.exp(whole.logprobs[0]), 2e-3)
    agree(number(told, "lens.next")[1, :-1], np.exp(whole.following[0, :-1]), 2e-3)
