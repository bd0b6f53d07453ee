"""The steps from logits to a token, each against a plain loop, and the draw against its own probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree

import nanollm_jax as nano
from nanollm_jax import sampling as smp

V = 23
rng = np.random.default_rng(4)
draw, shape_logits = jax.jit(smp.draw), jax.jit(smp.shape_logits)
LOGITS = (2 * rng.standard_normal((3, V))).astype(np.float32)


def nothing_seen(batch=3):
    return smp.no_history(batch, V)


def kept(logits=LOGITS, **settings):
    """Which ids can still be drawn, row by row."""
    sampling = nano.Sampling(**settings).rows(len(logits), V)
    shaped = shape_logits(jnp.asarray(logits), sampling, nothing_seen(len(logits)))
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in np.asarray(shaped)]


def best(row, count):
    return set(np.argsort(-row)[:count].tolist())


def softmax(row):
    exp = np.exp(row.astype(float) - row.max())
    return exp / exp.sum()


def test_top_k_keeps_the_k_best_of_each_row():
    assert kept(top_k=[1, 5, 0]) == [best(LOGITS[0], 1), best(LOGITS[1], 5), set(range(V))]
    assert kept(top_k=10**6) == [set(range(V))] * 3


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999999, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(p):
    for row, found in zip(LOGITS, kept(top_p=p), strict=True):
        probabilities = np.sort(softmax(row))[::-1]
        count = 1 + int((np.cumsum(probabilities)[:-1] < p).sum())
        assert found == best(row, count)


def test_min_p_is_relative_to_the_best():
    for row, found in zip(LOGITS, kept(min_p=0.1), strict=True):
        assert found == set(np.flatnonzero(softmax(row) >= 0.1 * softmax(row).max()).tolist())
    assert kept(min_p=1.0) == [best(row, 1) for row in LOGITS]


def test_cuts_come_one_after_the_other_and_after_temperature():
    """top_p counts probabilities among what top_k left, of logits that temperature has changed."""
    for row, found in zip(LOGITS, kept(temperature=0.5, top_k=4, top_p=0.8), strict=True):
        left = np.sort(row / 0.5)[::-1][:4]
        assert found == best(row, 1 + int((np.cumsum(softmax(left))[:-1] < 0.8).sum()))


def test_ties_are_kept_together():
    assert kept(np.asarray([[1.0] * 3 + [0.0] * 20], np.float32), top_k=2) == [{0, 1, 2}]


def test_penalties_by_hand():
    """Prompt 1 1 2, answer 2 3 3: repetition sees all of them, presence and frequency the answer only."""
    past = smp.read(smp.no_history(1, V), jnp.asarray([[1, 1, 2, 9]]), jnp.asarray([3]))  # 9 is padding
    for token in (2, 3, 3):
        past = smp.remember(past, jnp.asarray([token]))
    logits = LOGITS[:1]
    sampling = nano.Sampling(
        repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={1: 3, 4: -1}
    )
    expected = logits[0].copy()
    expected[[1, 4]] += [3, -1]
    for token in (1, 2, 3):
        expected[token] = expected[token] / 2 if expected[token] > 0 else expected[token] * 2
    expected[2] -= 0.5 + 0.25
    expected[3] -= 0.5 + 0.5
    ours = smp.penalize(jnp.asarray(logits), sampling.rows(1, V), past)[0]
    agree(ours, expected)


def draws(count, **settings):
    """Many draws from the first row, at positions 0, 1, 2, ..."""
    sampling = nano.Sampling(**settings).rows(count, V)
    logits = jnp.repeat(jnp.asarray(LOGITS[:1]), count, axis=0)
    return draw(logits, sampling, nothing_seen(count), jnp.full(count, 7, jnp.uint32), jnp.arange(count))


def test_draws_follow_the_distribution():
    """20,000 draws: no frequency is more than five deviations away from its probability."""
    tokens, logprobs = draws(20_000, temperature=1.5, top_k=6)
    probabilities = np.where(np.isin(np.arange(V), list(best(LOGITS[0], 6))), softmax(LOGITS[0] / 1.5), 0)
    probabilities /= probabilities.sum()
    frequencies = np.bincount(tokens, minlength=V) / 20_000
    assert (np.abs(frequencies - probabilities) <= 5 * np.sqrt(probabilities * (1 - probabilities) / 20_000)).all()
    agree(logprobs, np.log(softmax(LOGITS[0]))[tokens])  # of the unmodified logits


def test_greedy_takes_the_best_after_the_penalties():
    tokens, logprobs = draws(2, temperature=[0.0, 0.0], logit_bias=[None, {int(LOGITS[0].argmax()): -100.0}])
    assert tokens.tolist() == np.argsort(-LOGITS[0])[:2].tolist()
    agree(logprobs, np.sort(np.log(softmax(LOGITS[0])))[::-1][:2])


def test_a_tiny_temperature_is_greedy_and_a_huge_one_is_uniform():
    assert set(draws(2000, temperature=1e-30)[0].tolist()) == {int(LOGITS[0].argmax())}
    assert len(set(draws(2000, temperature=1e30)[0].tolist())) == V


def test_forbidden_ids_are_never_drawn():
    tokens, _ = draws(2000, temperature=3.0, logit_bias={token: -np.inf for token in range(V) if token not in (4, 8)})
    assert set(tokens.tolist()) == {4, 8}


def test_a_draw_depends_on_no_setting_of_jax():
    """Numbers of 64 bits are drawn in another way; those of another generator depend on the rows beside them."""
    rows = jnp.arange(50, dtype=jnp.uint32), jnp.arange(50)
    expected = jax.jit(smp.uniform)(*rows)
    for setting in (jax.enable_x64(True), jax.default_prng_impl("rbg")):
        with setting:
            np.testing.assert_array_equal(jax.jit(smp.uniform)(*rows), expected)


def test_a_draw_depends_on_seed_and_position_only():
    sampling = nano.Sampling(temperature=2.0).rows(6, V)
    logits = jnp.repeat(jnp.asarray(LOGITS[:1]), 6, axis=0)
    seeds, positions = jnp.asarray([1, 2, 1, 2, 3, 1], jnp.uint32), jnp.asarray([5, 5, 5, 6, 5, 900])
    tokens, _ = draw(logits, sampling, nothing_seen(6), seeds, positions)
    alone = [
        draw(
            logits[:1],
            nano.Sampling(temperature=2.0).rows(1, V),
            nothing_seen(1),
            seeds[i : i + 1],
            positions[i : i + 1],
        )
        for i in range(6)
    ]
    assert tokens.tolist() == [int(token[0]) for token, _ in alone]
    assert tokens[0] == tokens[2]
    uniform = draw(jnp.zeros((200, V)), nano.Sampling().rows(200, V), nothing_seen(200),
                       jnp.arange(200, dtype=jnp.uint32), jnp.zeros(200, jnp.int32))[0]  # fmt: skip
    assert len(set(uniform.tolist())) > 15


BAD = {
    "temperature": [-0.1, float("nan"), float("inf"), "hot", None, True, [1.0, 1.0], 1e39, 1e-39, 10**400, np.True_, 1j],
    "top_k": [-1, 1.5, 2**31, float("nan"), 10**400],
    "top_p": [0.0, -0.5, 1.0001, float("nan")],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0.0, -1.0, float("inf")],
    "presence_penalty": [float("nan")],
    "frequency_penalty": [float("-inf"), 1e39, -1e39, 1e-39, 10**400, [10**5000] * 3],
    "typical_p": [0.0, 1.1],
    "no_repeat_ngram_size": [-1, 1.5, 2**31],
    "min_new_tokens": [-1, 10**400],
    "begin_suppress_tokens": [[V], 5, None, "ab", [True], b"ab"],
    "forced_eos_token_id": [V, -1, "a"],
    "logit_bias": [{V: 1.0}, {-1: 1.0}, {"1": 1.0}, {1: float("nan")}, {1: float("inf")}, {1: 1e39}, {1: -(10**400)},
                   {1: 1e-39}, [{}], 3,
                   {token: -float("inf") for token in range(V)}],
}  # fmt: skip


@pytest.mark.parametrize("name,value", [(name, value) for name, values in BAD.items() for value in values])
def test_refused_settings(name, value):
    with pytest.raises(nano.RequestError, match=name):
        nano.Sampling(**{name: value}).rows(3, V)


def drawn_text(prompt, answer, positions=16):
    past = smp.read(smp.no_history(1, V, positions), jnp.asarray([[*prompt, 9]]), jnp.asarray([len(prompt)]))
    for token in answer:
        past = smp.remember(past, jnp.asarray([token]))
    return past


@pytest.mark.parametrize("size", range(1, 6))
def test_no_run_comes_again(size):
    """The ids that a plain search in the text finds; a row that does not ask for it is left alone."""
    text = [1, 2, 3, 1, 2, 5, 3, 1, 2, 3, 1, 2]
    past = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), drawn_text(text[:5], text[5:]))
    sampling = nano.Sampling(no_repeat_ngram_size=[size, 0]).rows(2, V)
    shaped = np.asarray(shape_logits(jnp.asarray(LOGITS[:2]), sampling, past))
    runs = {tuple(text[n : n + size]) for n in range(len(text) - size + 1)}
    expected = {token for token in range(V) if (*text[len(text) - size + 1 :], token) in runs}
    assert set(np.flatnonzero(np.isneginf(shaped[0])).tolist()) == expected and len(expected) > (size < 4)
    assert np.isfinite(shaped[1]).all()
    known = smp.heard([text], [[]], V, 16)
    assert (known.text == drawn_text(text, []).text).all() and (known.prompt == drawn_text(text, []).prompt).all()


def test_what_the_length_forbids():
    """Prompt of two: at the first token, at a later one, and at the last."""
    sampling = nano.Sampling(min_new_tokens=2, begin_suppress_tokens=[4, 5], forced_eos_token_id=7)
    rows = sampling.rows(1, V, ends=[2, 7], max_new_tokens=4)
    for answer, forbidden in (([], {2, 4, 5, 7}), ([1], {2, 7}), ([1, 1], set()), ([1, 1, 1], set(range(V)) - {7})):
        shaped = shape_logits(jnp.asarray(LOGITS[:1]), rows, drawn_text([1, 1], answer))
        assert set(np.flatnonzero(np.isneginf(np.asarray(shaped[0]))).tolist()) == forbidden
    each = nano.Sampling(begin_suppress_tokens=[[1], [], [2, 3]], temperature=0.0).rows(3, V)
    shaped = np.asarray(shape_logits(jnp.asarray(LOGITS), each, nothing_seen()))
    assert [np.flatnonzero(np.isneginf(row)).tolist() for row in shaped] == [[1], [], [2, 3]]


def test_typical_tokens_are_those_nearest_the_entropy():
    differ = 0
    for row, found in zip(LOGITS, kept(typical_p=0.3), strict=True):
        p = softmax(row)
        distance = np.abs(np.log(p) - (p * np.log(p)).sum())
        order = np.argsort(distance)
        assert found == set(order[: 1 + int((np.cumsum(p[order])[:-1] < 0.3).sum())].tolist())
        differ += found != best(row, len(found))
    assert differ


def test_a_logprob_of_no_number_is_no_number():
    logits = np.repeat(LOGITS[:1], 4, axis=0)
    logits[[0, 1, 2], [3, 4, 5]] = np.nan, np.inf, -np.inf
    tokens, logprobs = draw(logits, nano.Sampling().rows(4, V), nothing_seen(4), np.zeros(4, np.uint32), np.arange(4))
    assert np.isnan(logprobs).tolist() == [True, True, True, False]


def test_numbers_of_every_kind_are_taken():
    rows = nano.Sampling(
        temperature=np.float32(0.5), top_k=np.int64(3), top_p=jnp.float32(0.25), min_p=np.array([0, 0.5, 1]),
        repetition_penalty=jnp.bfloat16(1.5), logit_bias={np.int8(3): jnp.float32(2), np.uint64(4): -np.inf},
    )  # fmt: skip
    rows = rows.rows(3, V)
    assert rows.temperature.tolist() == [0.5] * 3 and rows.top_k.tolist() == [3] * 3
    assert rows.repetition_penalty.tolist() == [1.5] * 3
    assert rows.logit_bias[:, 3].tolist() == [2.0] * 3 and np.isneginf(rows.logit_bias[:, 4]).all()
    assert rows.top_p.tolist() == [0.25] * 3 and rows.min_p.tolist() == [0, 0.5, 1]
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(rows))
