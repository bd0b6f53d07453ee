"""Several tokens a step: what is guessed, and that no answer depends on it, to the last bit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from law import ROWS, alone, model_of, requests_for, result, schedule
from models import LLAMA, random_model

import nanollm_jax as nano
from nanollm_jax.engine.drafts import RUN, check_draft, look_up
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.engine.warmup import warm
from nanollm_jax.measure.plan import DEVICES, make_plan
from nanollm_jax.serve.metrics import Metrics

SHORT = 16


@dataclass(frozen=True)
class Told(nano.Lookup):
    """Guesses what it was told of each text [N P], but for every `wrong`-th token; nothing where it was told nothing."""

    texts: tuple[tuple[int, ...], ...] = ()
    wrong: int = 0

    def guess(self, past):
        at = past.length[:, None] + jnp.arange(self.tokens)[None]
        if not self.texts:
            return 0 * at, past.length < 0
        texts = jnp.asarray(self.texts)
        behind = jnp.arange(past.text.shape[1])[None] >= past.length[:, None]
        same = jnp.all((past.text[:, None] == texts[None, :, : behind.shape[1]]) | behind[:, None], axis=2)
        ids = texts[jnp.argmax(same, axis=1)[:, None], at]
        return jnp.where(at % self.wrong == 0, (ids + 1) % 80, ids) if self.wrong else ids, jnp.any(same, axis=1)


class Spelled:
    """A tokenizer that spells one token otherwise."""

    def __init__(self, tokenizer):
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size

    def piece(self, token):
        return "@" if token == 300 else self.tokenizer.piece(token)

    def token_bytes(self, token):
        return b"@" if token == 300 else self.tokenizer.token_bytes(token)


def told(model, requests, answers):
    """Texts of requests and what was answered, with nothing behind."""
    size = model.config.max_positions + 16
    texts = [[*request.text, *answer[0]] for request, answer in zip(requests, answers, strict=True)]
    return tuple(tuple(text + [0] * (size - len(text))) for text in texts)


def looked_up(text, count):
    """The definition, in a plain loop."""
    best, place = 0, None
    for at in range(1, len(text)):
        run = next((n for n in range(RUN) if n >= at or text[at - 1 - n] != text[-1 - n]), RUN)
        best, place = (run, at) if run and run >= best else (best, place)
    return None if place is None else [text[place + n % (len(text) - place)] for n in range(count)]


def test_what_is_guessed_is_what_followed_the_longest_run_last():
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, V, n).tolist() for V in (3, 5, 200) for n in (1, 2, 3, 7, 30)]
    padded = np.zeros((len(texts), 32), np.int32)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    ids, found = jax.jit(look_up, static_argnums=2)(jnp.asarray(padded), jnp.asarray([*map(len, texts)]), 6)
    expected = [looked_up(text, 6) for text in texts]
    assert found.tolist() == [one is not None for one in expected] and 5 < sum(found.tolist()) < len(texts)
    for mine, theirs in zip(np.asarray(ids), expected, strict=True):
        assert theirs is None or mine.tolist() == theirs


def draft_for(model):
    """Another small model of the same vocabulary: another family, fewer positions, and random."""
    config, _ = nano.read_config(LLAMA | {"vocab_size": model.config.vocab_size, "max_position_embeddings": 64})
    return nano.Model(config, nano.init_params(config, jax.random.key(9), "float32"), model.tokenizer)


def check_guesses(model, count, longest, guesses, rows=ROWS, parted=0):
    """Whoever guesses: the same tokens, logprobs, scores and ends, in any schedule; and the tokens of who does not guess.

    parted answers may depart from those of who does not guess, whose steps are other programs: where a draw falls between two
    tokens, rounding decides. All before it is the same.
    """
    requests = requests_for(model, count, longest=longest)
    plain = alone(model, requests, rows=rows, piece=SHORT)
    texts, known = told(model, requests, plain), None
    for guess in guesses:
        guess = dataclasses.replace(guess, texts=texts) if isinstance(guess, Told) and guess.wrong else guess
        engine = Engine(model, rows, piece=SHORT, speculate=guess)
        warm(engine, longest + 50, longest + 80, scores=True)
        with CompileWatch() as watch:
            tickets = schedule(engine, requests, seed=1)
        assert watch.programs == 0
        found = [None if ticket.cancelled else result(ticket) for ticket in tickets]
        pairs = [(mine, theirs) for mine, theirs in zip(found, plain, strict=True) if mine and mine[0] != theirs[0]]
        assert len(pairs) <= parted
        for mine, theirs in pairs:
            same = next(n for n, (a, b) in enumerate(zip(mine[0], theirs[0], strict=False)) if a != b)
            agree(np.array(mine[1][:same]), np.array(theirs[1][:same]), 1e-3)
        known = known or [None] * count
        assert all(a is None or b is None or a == b for a, b in zip(found, known, strict=True)), guess
        known = [a or b for a, b in zip(known, found, strict=True)]
        drafted, accepted = (sum(getattr(ticket, name) for ticket in tickets) for name in ("drafted", "accepted"))
        noted = [sum(event.amount for event in engine.events if event.what == what) for what in ("drafted", "accepted")]
        assert noted == [drafted, accepted]
        if isinstance(guess, Told):  # of four that it was told all but one are right; it is wrong all the same
            assert (accepted > drafted / 4 > 5) if guess.texts else drafted == 0
        assert all(slot.ticket is None for slot in engine.slots) and not engine.pending


def test_no_answer_depends_on_what_was_guessed():
    """Of full attention and rings, whose slots are those of more than the window; another model has fewer positions."""
    model = model_of("gemma3_text")
    with pytest.warns(nano.NanoLLMWarning, match="has 64 positions, the model 600"):
        check_guesses(model, 15, 40, [Told(3, wrong=5), nano.DraftModel(draft_for(model), 3)])


def test_speculation_is_a_property_of_the_rows():
    """generate and stream take the engine that speculates so, and the one without goes on beside it."""
    model = random_model("llama")
    prompt = [1, 2, 3, 4] * 6
    plain, guessed = (
        nano.generate(model, prompt, max_new_tokens=40, sampling=nano.Sampling(temperature=0.0), rows=1, speculate=who)
        for who in (None, "lookup:3")
    )
    assert guessed.token_ids == plain.token_ids and list(model.engines) == [(1, None), (1, nano.Lookup(3))]
    agree(guessed.logprobs, plain.logprobs, 1e-5, size=10)
    assert guessed.timings.drafted_tokens >= guessed.timings.accepted_tokens > 10 > plain.timings.drafted_tokens == 0
    stream = nano.stream(model, prompt, max_new_tokens=9, rows=1, speculate=nano.Lookup(3))
    assert not list(stream) and stream.generation.logprobs == guessed.logprobs[:9]
    metrics = Metrics("m")
    metrics.stepped(stream.shared.engine, list(stream.shared.engine.events), 0.0, 0)
    right = guessed.timings.accepted_tokens + stream.timings.accepted_tokens
    assert f'nanollm:spec_decode_num_accepted_tokens_total{{model_name="m"}} {right}.0'.encode() in metrics.text()
    for wrong in (0, 16, 1.5, "4"):
        with pytest.raises(nano.RequestError, match="expected 1 to 15"):
            nano.Lookup(wrong)
    for wrong in ("lookup:", "lookup:x", "draft", 4):
        with pytest.raises(nano.RequestError, match="expected lookup:N"):
            nano.stream(model, prompt, speculate=wrong)


@pytest.mark.parametrize("family", ["gemma3_text", pytest.param("gemma4_text", marks=pytest.mark.parity)])
def test_a_draft_model_reads_what_the_model_reads(family):
    """The model itself is always right where nothing is drawn at random; behind a prefix that is restored, too."""
    model = model_of(family)
    engine, prompt = Engine(model, ROWS, piece=SHORT, speculate=nano.DraftModel(model, 3)), (5, 7, 11, 2) * 12
    tickets = []
    for _ in range(2):
        tickets.append(engine.submit(Request(prompt, 40, nano.Sampling(temperature=0.0))))
        while not engine.idle:
            engine.step()
    assert tickets[1].cached_tokens == 32 and result(tickets[1]) == result(tickets[0])
    assert all(ticket.accepted == ticket.drafted > 25 for ticket in tickets)


def test_a_draft_model_has_the_same_tokens_on_the_same_devices():
    model, other = random_model("llama"), random_model("gpt2")
    for draft, words in ((other, "another vocabulary"), (nano.shard(model, nano.make_mesh(1, 2)), "on other devices")):
        with pytest.raises(nano.RequestError, match=words):
            nano.generate(model, [1, 2], speculate=nano.DraftModel(draft))
    bundled = nano.load()
    fewer = dataclasses.replace(bundled, tokenizer=Spelled(bundled.tokenizer))
    with pytest.raises(nano.RequestError, match=r"other tokens: 300 is .*'@', b'@'.*take one with the same tokenizer"):
        check_draft(bundled, fewer)
    check_draft(bundled, bundled)


def test_what_speculation_takes_is_planned():
    """Logits of all places of a block, slots of rings for tokens that may be thrown away, and a step that takes them all."""
    config = model_of("gemma3_text").config
    without, planned = (make_plan(config, batch=2, context=64, dtype="float32", drafts=drafts) for drafts in (0, 3))
    rings = sum(layer.window is not None for layer in config.layers)
    assert planned.cache - without.cache == 2 * 4 * 2 * config.num_kv_heads * config.head_dim * 3 * rings
    assert planned.state - without.state == 2 * 4 * 3 * config.vocab_size
    assert planned.products == 4 * without.products and planned.prefill_limit(DEVICES["h100"]) == without.prefill_limit(
        DEVICES["h100"]
    )
