"""Inside the model, too: hidden states and attention weights are the reference's output_hidden_states and output_attentions.

Needs torch and transformers: `make parity`. The names, beside theirs:

    hidden_states[0]        embedding
    hidden_states[n]        layers.{n-1}.out, but for the last
    hidden_states[L]        final_norm: the last one is normalised
    attentions[n]           layers.{n}.attention.weights, [B K G T S] where theirs are [B N T S], N = K * G; theirs are of those
                            layers alone that have attention
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from test_parity import CASES, ONE_OF_EACH, reference_and_ours

import nanollm_jax as nano

pytestmark = pytest.mark.parity

KEEP = ("embedding", "layers.*.out", "final_norm", "layers.*.attention.weights")


def theirs(reference, ids):
    """What the reference says of texts: hidden states L + 1 x [B T D], attention weights L x [B N T S]."""
    import torch

    with torch.no_grad():
        found = reference(
            torch.from_numpy(np.asarray(ids, np.int64)), output_hidden_states=True, output_attentions=True
        )
    return [x.numpy() for x in found.hidden_states], [x.numpy() for x in found.attentions]


def check(values, expected, layers):
    """values {name: [B T ..]}, weights as [B N T S]"""
    states, weights = expected
    looking = [index for index, layer in enumerate(layers) if layer.attends]
    assert len(states) == len(layers) + 1 and len(weights) == len(looking)
    names = ["embedding", *(f"layers.{n}.out" for n in range(len(layers) - 1)), "final_norm"]
    for name, state in zip(names, states, strict=True):
        agree(values[name], state, 1e-4)
    for n, weight in zip(looking, weights, strict=True):
        agree(values[f"layers.{n}.attention.weights"], weight, 1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_observed(name, tmp_path_factory):
    """Of one of every family, past its windows."""
    reference, model = reference_and_ours(name, tmp_path_factory)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 40), dtype=np.int32)
    cache = nano.init_cache(model.config, 2, 40, jnp.float32)
    inside = jax.jit(nano.harvest(nano.forward, KEEP), static_argnames="config")
    _, values = inside(model.params, ids, cache, config=model.config)
    flat = {key: x.reshape(2, -1, 40, 40) if key.endswith("weights") else x for key, x in values.items()}
    check(flat, theirs(reference, ids), model.config.layers)


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window", "gpt2", "gemma3", "mixtral"])
def test_watched(name, tmp_path_factory):
    """Of the real generation, with its cache and its rings: the reference's over the whole text."""
    assert name in CASES
    reference, model = reference_and_ours(name, tmp_path_factory)
    prompts = [[5, 17, 3, 88, 42], [7] * 20]
    box = nano.watch(model, prompts, keep=KEEP, max_new_tokens=12, sampling=nano.Sampling(temperature=0.9), seed=3)
    for row, ids in enumerate(box.tokens):
        T = len(ids) - 1  # the last token was drawn and never run
        values = {key: box[key][row] for key in box.names}
        flat = {  # [T K G S] -> [1 N T S]
            key: np.moveaxis(x.reshape(T, -1, T), 0, 1)[None] if key.endswith("weights") else x[None]
            for key, x in values.items()
        }
        check(flat, theirs(reference, [ids[:-1]]), model.config.layers)
