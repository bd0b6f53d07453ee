"""What must not matter does not matter: pieces, batches, padding, capacity; for every family."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import INVARIANT, random_model

import nanollm_jax as nano
from nanollm_jax import params as parameters

SAMPLED = nano.Sampling(temperature=1.3, top_k=40, top_p=0.95, repetition_penalty=1.2, frequency_penalty=0.1)
PROMPTS = [[5], [7, 3, 9, 11, 2], list(range(1, 20)), [0, 0, 0]]  # 0 is also what prompts are padded with


QUICK = ("llama", "gemma3_text")  # with make test; compiling is all that they cost


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.parity) for name in INVARIANT],
)
def model(request):
    return random_model(request.param)


# what a row is beside others test_engine.py asks of rings, too
in_one_family = pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=[] if name == QUICK[0] else pytest.mark.parity) for name in INVARIANT],
    indirect=True,
)


@pytest.fixture(scope="module")
def forward(model):
    """Compiled for each shape, which is what these tests cost: they take the same ones, tokens [2 13] and a cache of 44."""
    return jax.jit(lambda tokens, cache: nano.forward(model.params, tokens, cache, config=model.config))


@pytest.fixture(scope="module")
def whole(model, forward):
    """A function from one or two texts of up to 44 ids to the logits of one forward, [2 44 V]; zeros stand behind them."""

    def run(*texts):
        tokens = np.zeros((2, 44), np.int32)
        for row, ids in enumerate(texts):
            tokens[row, : len(ids)] = ids
        return forward(jnp.asarray(tokens), empty(model, 2, 44))[0]

    return run


def tokens_for(model, B, T, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, model.config.vocab_size, (B, T)), jnp.int32)


def empty(model, batch, capacity):
    return nano.init_cache(model.config, batch, capacity, jnp.float32)


def test_pieces_equal_one_forward(model, forward, whole):
    """A prompt in pieces of 13, 1 and 13, then token by token: past the window and past rope's original length."""
    tokens = tokens_for(model, 2, 44)
    cache, pieces, at = empty(model, 2, 44), [], 0
    for size in (13, 1, 13, *[1] * 17):
        logits, cache = forward(tokens[:, at : at + size], cache)
        pieces.append(logits)
        at += size
    assert cache.length.tolist() == [44, 44]
    agree(jnp.concatenate(pieces, 1), whole(*tokens), 1e-4)


def test_capacity_does_not_matter(model, forward):
    tokens = tokens_for(model, 2, 13)
    exact, roomy = (forward(tokens, empty(model, 2, capacity))[0] for capacity in (13, 44))
    agree(exact, roomy, 1e-4)


def test_leftovers_in_the_cache_are_not_seen(model, forward):
    """Slots past a row's length hold garbage after padding; it must not reach anyone."""
    tokens = tokens_for(model, 2, 13)
    clean = empty(model, 2, 44).replace(fresh=False)
    dirty = clean.replace(layers=tuple(layer.replace(k=layer.k + 1e6, v=layer.v - 1e6) for layer in clean.layers))
    np.testing.assert_array_equal(forward(tokens, clean)[0], forward(tokens, dirty)[0])


def test_future_tokens_do_not_matter(model, forward):
    tokens = tokens_for(model, 2, 13)
    other = tokens.at[:, 8:].set((tokens[:, 8:] + 1) % model.config.vocab_size)
    first, second = (forward(t, empty(model, 2, 44))[0] for t in (tokens, other))
    agree(first[:, :8], second[:, :8])
    assert np.abs(first[:, 8:] - second[:, 8:]).max() > 1e-3


def test_prefill_ends_at_the_real_length(model, whole):
    """Logits of the last real token, rows of different lengths, and a second turn behind the first."""
    tokens, lengths = tokens_for(model, 3, 16), jnp.asarray([1, 16, 9])
    state = nano.prefill(model.params, tokens, lengths, empty(model, 3, 40), config=model.config)
    assert state.cache.length.tolist() == [1, 16, 9]
    more = tokens_for(model, 3, 16, seed=1)
    second = nano.prefill(model.params, more, jnp.asarray([4, 4, 4]), state.cache, config=model.config)
    for row, length in enumerate(lengths.tolist()):
        logits = whole(jnp.concatenate([tokens[row, :length], more[row, :4]]))[0]
        agree(state.logits[row], logits[length - 1], 1e-4)
        agree(second.logits[row], logits[length + 3], 1e-4)


def test_teacher_forcing_gives_the_logprobs_of_generate(model, whole):
    prompt = PROMPTS[2]
    answer = nano.generate(model, prompt, max_new_tokens=12, sampling=SAMPLED, seed=3)
    logprobs = np.asarray(jax.nn.log_softmax(whole(prompt + answer.token_ids)[0]))
    expected = [float(logprobs[len(prompt) - 1 + step, token]) for step, token in enumerate(answer.token_ids)]
    agree(answer.logprobs, expected, 1e-4)


@in_one_family
def test_a_row_alone_is_the_row_in_a_batch(model):
    """Other rows, another number of rows, other prompt buckets and other capacities change no token."""
    seeds = [11, 12, 13, 14]
    sampling = [SAMPLED, nano.Sampling(temperature=0.0), SAMPLED, SAMPLED]
    batch = nano.generate(model, PROMPTS, max_new_tokens=20, sampling=sampling, seed=seeds)
    for prompt, own, seed, row in zip(PROMPTS, sampling, seeds, batch, strict=True):
        alone = nano.generate(model, [prompt], max_new_tokens=20, sampling=own, seed=seed)[0]
        assert alone.token_ids == row.token_ids
        agree(alone.logprobs, row.logprobs, 1e-4)
    swapped = nano.generate(model, PROMPTS[::-1], max_new_tokens=20, sampling=sampling[::-1], seed=seeds[::-1])
    assert [row.token_ids for row in swapped[::-1]] == [row.token_ids for row in batch]


@pytest.mark.parametrize("model", ["llama", "gemma3_text"], indirect=True)
def test_new_tokens_up_to_the_last_position(model):
    """The chunk overshoots the last position of the model; what is returned does not change."""
    prompt = tokens_for(model, 1, 246)[0].tolist()
    full = nano.generate(model, prompt, max_new_tokens=10, sampling=SAMPLED)
    assert len(full.token_ids) == 10 and full.finish_reason == "length"
    watched = nano.stream(model, prompt, max_new_tokens=10, sampling=SAMPLED)
    assert "".join(watched) == full.text and watched.generation == full


def test_padding_does_not_matter(model):
    """What stands behind the real length of a prompt changes neither the logits nor what the penalties see."""
    lengths, tokens = jnp.asarray([3, 1, 9]), tokens_for(model, 3, 16)
    padding = jnp.arange(16)[None, :] >= lengths[:, None]
    states = [
        nano.prefill(model.params, jnp.where(padding, other, tokens), lengths, empty(model, 3, 40), config=model.config)
        for other in (0, 17)
    ]
    agree(states[0].logits, states[1].logits)
    np.testing.assert_array_equal(states[0].past.prompt, states[1].past.prompt)


@in_one_family
def test_functional_core_under_vmap_and_grad(model, forward):
    """vmap over whole requests equals a batch; the gradient is finite and not zero."""
    tokens, config = tokens_for(model, 2, 13), model.config
    cache = empty(model, 1, 13)
    # jax has no vmap of the product by groups
    mixture = any("router" in layer["mlp"] for layer in model.params["layers"])
    one = lambda row: nano.forward(model.params, row[None], cache, config=config)[0][0]  # noqa: E731
    batched = forward(tokens, empty(model, 2, 44))[0]
    each = (lambda rows: jax.lax.map(one, rows)) if mixture else jax.vmap(one)
    agree(jax.jit(each)(tokens), batched, 1e-4)

    def loss(params):
        logits, _ = nano.forward(params, tokens[:1], cache, config=config)
        return jax.nn.log_softmax(logits)[..., 3].sum()

    gradients = parameters.flatten(jax.jit(jax.grad(loss))(model.params))
    assert all(np.isfinite(g).all() for g in gradients.values())
    still = {path for path, g in gradients.items() if not float(jnp.abs(g).max()) > 0}
    # what is added for the choice of experts alone has none, and a key's bias cancels in softmax
    assert len([path for path in still if not path.endswith("correction")]) <= 2
