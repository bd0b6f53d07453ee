"""Scores: the log-probabilities that forward gives, each token once, in windows with the stated stride."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from accuracy import stories
from agreement import agree
from models import random_model

import nanollm_jax as nano
from nanollm_jax.engine.score import windows_of
from nanollm_jax.model import hidden_states

pytestmark = pytest.mark.usefixtures("bundled_is_short")

TEXT = "Once upon a time, there was a little girl named Lily. é🙂"


@pytest.fixture(scope="module")
def model() -> nano.Model:
    return nano.load(dtype="float32")


@pytest.fixture(scope="module")
def llama() -> nano.Model:
    return random_model("llama")


@partial(jax.jit, static_argnames="config")
def next_logprobs(params: Any, tokens: jax.Array, config: nano.ModelConfig) -> jax.Array:
    """The vocabulary's logprobs after each token, by plain forward.  tokens [1 T] -> [T V]"""
    cache = nano.init_cache(config, *tokens.shape, jnp.float32)
    return jax.nn.log_softmax(nano.forward(params, tokens, cache, config=config)[0][0], axis=-1)


def oracle(model: nano.Model, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logprob of each token but the first after all before it, and whether it is the best.

    Zeros behind the text, which it cannot see: so one program is compiled for all sizes.
    """
    tokens = jnp.asarray([ids + [0] * (256 - len(ids))])
    logprobs = np.asarray(next_logprobs(model.params, tokens, model.config))[: len(ids) - 1]
    return logprobs[np.arange(len(ids) - 1), ids[1:]], logprobs.argmax(-1) == ids[1:]


def near(ours: Any, logprobs: Any) -> None:
    """A logprob is a difference of logits, which are about ten, however small it is itself."""
    agree(ours, logprobs, 1e-4, size=10)


def random_ids(size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 101, size).tolist()


def test_a_text_is_scored_as_forward_does(model: nano.Model) -> None:
    assert model.tokenizer is not None
    score = nano.score(model, TEXT)
    ids = model.tokenizer.encode(TEXT)
    logprobs, best = oracle(model, ids)
    assert isinstance(score, nano.Score) and score.token_ids == ids[1:]
    near(score.logprobs, logprobs)
    assert score.best == best.tolist() and 0 < sum(score.best) < len(best)
    assert score.bytes == len(TEXT.encode())
    total = -logprobs.sum()
    agree(score.logprob, -total, 1e-4)
    assert score.perplexity == pytest.approx(math.exp(total / len(logprobs)), rel=1e-4)
    assert score.bits_per_byte == pytest.approx(total / math.log(2) / len(TEXT.encode()), rel=1e-4)


@pytest.mark.parametrize("size", [2, 3, 15, 16, 17, 127, 129, 130, 200, 256])
def test_any_size(llama: nano.Model, size: int) -> None:
    ids = random_ids(size)
    logprobs, best = oracle(llama, ids)
    (score,) = nano.score(llama, [ids])
    near(score.logprobs, logprobs)
    assert (score.best, score.bytes) == (best.tolist(), 0) and math.isnan(score.bits_per_byte)


def test_many_texts_are_each_scored_as_alone(llama: nano.Model) -> None:
    texts = [random_ids(size, seed) for seed, size in enumerate([5, 40, 2, 17, 33, 9])]
    for text, score in zip(texts, nano.score(llama, texts), strict=True):
        assert score.token_ids == text[1:]
        near(score.logprobs, oracle(llama, text)[0])
        assert nano.score(llama, [text], rows=8) == [score]  # bit for bit


@pytest.mark.parametrize(("window", "stride"), [(8, 1), (8, 4), (8, 7), (2, 1), (17, 5), (256, None), (60, None)])
def test_long_texts_in_windows(llama: nano.Model, window: int, stride: int | None) -> None:
    ids = random_ids(61)
    (score,) = nano.score(llama, [ids], window=window, stride=stride)
    step = window // 2 if stride is None else stride
    for n, logprob in list(enumerate(score.logprobs, 1))[:: -7 if window > 8 else -3]:  # the last, and some before it
        # the first window that has the token
        start = 0 if n < window else step * math.ceil((n - window + 1) / step)
        assert n - start >= min(n, window - step)
        near(logprob, oracle(llama, ids[start : n + 1])[0][-1])


def test_windows() -> None:
    spans = [(one.start, one.scored, one.end) for one in windows_of(0, 10, 1, 4, 2)]
    assert spans == [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    assert [(one.start, one.scored, one.end) for one in windows_of(0, 10, 7, 4, 2)] == [(4, 7, 8), (6, 8, 10)]
    assert [(one.start, one.scored, one.end) for one in windows_of(0, 4, 2, 4, 2)] == [(0, 2, 4)]


def test_continuations(model: nano.Model) -> None:
    assert model.tokenizer is not None
    pairs = [("Once upon a", " time"), ("The dog", " ran home."), ("", "Once upon"), ([1, 300, 301], [302, 303])]
    for (context, continuation), score in zip(pairs, nano.score(model, pairs), strict=True):
        if isinstance(context, str):
            ids = model.tokenizer.encode(context + continuation)
            known = len(model.tokenizer.encode(context))
            assert score.bytes == len(continuation)
        else:
            ids, known = context + continuation, len(context)
        assert score.token_ids == ids[known:]
        near(score.logprobs, oracle(model, ids)[0][known - 1 :])


def test_a_list_of_ids_is_one_text(model: nano.Model) -> None:
    """As in generate, of any library's numbers; a list of one is a list."""
    (expected,) = nano.score(model, [[5, 9, 17, 4]])
    for ids in ([5, 9, 17, 4], (5, 9, 17, 4), np.array([5, 9, 17, 4]), np.array([[5, 9, 17, 4]])):
        found = nano.score(model, ids)  # type: ignore[arg-type]
        assert (found[0] if isinstance(found, list) else found) == expected
    assert isinstance(nano.score(model, (5, 9)), nano.Score)


def test_a_token_across_the_seam_is_scored(model: nano.Model) -> None:
    assert model.tokenizer is not None
    (score,) = nano.score(model, [("Once up", "on a time")])
    whole = model.tokenizer.encode("Once upon a time")
    assert model.tokenizer.decode(score.token_ids, start=False) == " upon a time"
    near(score.logprobs, oracle(model, whole)[0][-len(score.token_ids) :])


@pytest.mark.parametrize(
    ("texts", "rest", "match"),
    [
        ("", {}, "a text of 1 tokens has none with another before it"),
        ([[5]], {}, "a text of 1 tokens"),
        ([[5, 9999]], {}, "token 9999; ids of this model go from 0"),
        ([("a", "")], {}, "a continuation has no tokens of its own"),
        ([("a", [1])], {}, "a pair has a text and something else"),
        ([("a", "b", "c")], {}, "a tuple of 3 cannot be scored"),
        ([([], [1])], {}, "a prompt has no tokens"),
        (3, {}, "texts is int; expected a text, or a list"),
        ([3], {}, "a text of 1 tokens"),
        ([5, [6, 7]], {}, "a prompt is 5; expected a text or a list of token ids"),
        (b"ab", {}, "texts is bytes; expected a text, or a list"),
        (("a", "b"), {}, r"texts is a tuple of two, which may be .*; \[a, b\] is two texts, \[\(a, b\)\] one pair"),
        (([5, 6], [7, 8]), {}, "texts is a tuple of two"),
        ("a\udcff", {}, "lone surrogate"),
        ("a b", {"window": 514}, "window is 514; expected 2 to 513"),
        ("a b", {"window": 1}, "window is 1"),
        ("a b", {"window": 2.5}, "window"),
        ("a b", {"stride": 512}, "stride is 512; expected less than the window of 512"),
        ("a b", {"stride": 0}, "stride"),
        ("a b", {"rows": 0}, "rows"),
    ],
)
def test_what_cannot_be_scored_is_refused(model: nano.Model, texts: Any, rest: dict[str, Any], match: str) -> None:
    with pytest.raises(nano.RequestError, match=match):
        nano.score(model, texts, **rest)


def test_nothing_to_score(model: nano.Model) -> None:
    assert nano.score(model, []) == []


@pytest.mark.parity
@pytest.mark.as_users  # running its programs takes longer than compiling them
def test_bits_per_byte_are_those_of_the_card(data: Path) -> None:
    """0.850 on the validation stories, which were cleaned and cut into documents as this does, four of them elsewhere."""
    model = nano.load(Path(nano.__file__).parent / "assets/nano-stories")
    scores = nano.score(model, stories(data / "corpora/tinystories_val.txt", 1000))
    assert isinstance(scores, list) and len(scores) == 784  # and the end of one before them
    bits = -sum(score.logprob for score in scores) / math.log(2) / sum(score.bytes for score in scores)
    agree(bits, 0.8496, 5e-4)


def test_the_best_tokens_beside_each(llama):
    """By plain forward: their ids, and the same number for a token that is itself the best."""
    ids = [(7 * n) % 101 for n in range(40)]
    tokens = jnp.asarray([ids + [0] * (256 - len(ids))])
    logprobs = np.asarray(next_logprobs(llama.params, tokens, llama.config))[: len(ids) - 1]
    found = nano.score(llama, [ids], top_logprobs=3)[0]
    assert [[token for token, _ in top] for top in found.top_logprobs] == np.argsort(-logprobs)[:, :3].tolist()
    agree([[value for _, value in top] for top in found.top_logprobs], -np.sort(-logprobs)[:, :3], 1e-5)
    for token, logprob, best, top in zip(found.token_ids, found.logprobs, found.best, found.top_logprobs, strict=True):
        assert best == (top[0] == (token, logprob))
    windowed = nano.score(llama, [ids], window=10, top_logprobs=1)[0]
    assert [
        token == top[0][0] for token, top in zip(windowed.token_ids, windowed.top_logprobs, strict=True)
    ] == windowed.best
    assert nano.score(llama, [ids])[0].top_logprobs == []
    with pytest.raises(nano.RequestError, match="top_logprobs is 21"):
        nano.score(llama, [ids], top_logprobs=21)


def test_embeddings(llama):
    """Mean and last of the states that the head reads, also of several pieces; of length 1 unless that is not wanted; alone and
    beside others.
    """
    texts = [[(7 * n + at) % 101 for n in range(size)] for at, size in enumerate((3, 140, 17))]
    read = jax.jit(partial(hidden_states, config=llama.config))
    for at, ids in enumerate(texts):
        tokens, cache = jnp.asarray([ids + [0] * (140 - len(ids))]), nano.init_cache(llama.config, 1, 140, jnp.float32)
        states = np.asarray(read(llama.params, tokens, jnp.asarray([len(ids)]), cache)[0][0, : len(ids)])
        for pooling, expected in (("mean", states.mean(0)), ("last", states[-1])):
            plain = nano.embed(llama, texts, pooling=pooling, normalize=False)
            agree(plain[at], expected, 1e-4)
            agree(nano.embed(llama, ids, pooling=pooling), expected / np.linalg.norm(expected), 1e-4)
            agree(nano.embed(llama, texts, pooling=pooling, normalize=False, rows=1), plain, 1e-4)
    with pytest.raises(nano.RequestError, match="pooling is 'cls'; expected mean or last"):
        nano.embed(llama, texts, pooling="cls")
    with pytest.raises(nano.RequestError, match="text 0 has 257 tokens, the model 256 positions"):
        nano.embed(llama, [[1] * 257])


def test_a_context_is_read_once(llama: nano.Model) -> None:
    """Continuations of the same long context, as in a question with choices: the same bits, and its pieces are found."""
    context, ends = random_ids(200, 9), [random_ids(3, seed) for seed in range(4)]
    pairs = [(context, end) for end in ends]
    together = nano.score(llama, pairs, rows=8)
    assert isinstance(together, list)
    events = llama.engines[8, None].engine.events
    assert [event.amount for event in events if event.what == "hit"][-3:] == [128] * 3
    for pair, score in zip(pairs, together, strict=True):
        near(score.logprobs, oracle(llama, pair[0] + pair[1])[0][-3:])
        assert nano.score(llama, [pair], rows=8) == [score]


def test_the_token_behind_the_last_position_is_scored(llama: nano.Model) -> None:
    ids = random_ids(257)
    (score,) = nano.score(llama, [ids], window=257)
    near(score.logprobs[:255], oracle(llama, ids[:256])[0])
    assert len(score.logprobs) == 256
