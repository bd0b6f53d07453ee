"""From logits to the next token: bias and penalties, temperature, the cuts, then one draw per row.

The steps and their order are those of Hugging Face transformers' processors:

    logit_bias            added to the logits
    repetition_penalty    on every id of the prompt or the answer: positive logits divided, negative ones multiplied
    presence_penalty      subtracted once from every id of the answer
    frequency_penalty     subtracted from every id of the answer as often as it occurs
    no_repeat_ngram_size  forbids the id that would repeat a run of n tokens of the prompt and the answer
    min_new_tokens, begin_suppress_tokens, forced_eos_token_id   forbid ids by how long the answer is
    a grammar             forbids the ids that cannot come next in an answer that follows it
    temperature           divides; 0 takes the best token here and skips the rest
    top_k                 keeps the k best
    top_p                 keeps the fewest best whose probabilities reach p
    min_p                 keeps what is at least min_p times as probable as the best
    typical_p             keeps the most typical whose probabilities reach p

The cuts are thresholds, so tokens that tie with the last one kept are kept too.
What no row asks for is not computed: a cond around each group of steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name as tag

from nanollm_jax.letters import pytree
from nanollm_jax.settings import Sampling

# a tree of its fields for jax, as what is below is; settings.py checks them without it
jax.tree_util.register_dataclass(Sampling, [field.name for field in dataclasses.fields(Sampling)], [])

BLOCK = 128  # ids that the draw looks at together
WORD = 32  # ids of a word of a mask
EVERYTHING = np.uint32(2**WORD - 1)  # the word by which all of them may be chosen


@pytree
class History:
    """What was said to each row and what it has answered.

    prompt [B V] bool    which ids its prompt has
    answer [B V] int32   how often its answer has each
    text   [B P] int32   both in their order, for the runs that must not come again; P may be 0 where nobody asks for that
    length [B] int32     how many tokens the text has
    drawn  [B] int32     how many of these are the answer's
    """

    prompt: jax.Array
    answer: jax.Array
    text: jax.Array
    length: jax.Array
    drawn: jax.Array


def no_history(batch: int, vocab_size: int, positions: int = 0) -> History:
    """The history of rows to which nothing was said, with room for texts of so many positions."""
    none, zero = jnp.zeros((batch, vocab_size), bool), jnp.zeros(batch, jnp.int32)
    empty = lambda size: jnp.zeros((batch, size), jnp.int32)  # noqa: E731
    return History(none, empty(vocab_size), empty(positions), zero, zero + 0)


def heard(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], vocab_size: int, positions: int
) -> History:
    """The history of rows that heard these prompts and have answered so far, on the host, with room for so many positions."""
    B = len(prompts)
    prompt, answer = np.zeros((B, vocab_size), bool), np.zeros((B, vocab_size), np.int32)
    text, length = np.zeros((B, positions), np.int32), np.zeros(B, np.int32)
    for row, (said, answered) in enumerate(zip(prompts, answers, strict=True)):
        ids = [*said, *answered]
        prompt[row, list(said)] = True
        np.add.at(answer[row], list(answered), 1)
        text[row, : len(ids)], length[row] = ids, len(ids)
    return History(prompt, answer, text, length, np.asarray(list(map(len, answers)), np.int32))  # type: ignore[arg-type]


def read(past: History, tokens: jax.Array, count: jax.Array) -> History:
    """Take more of each row's prompt.  tokens [B T], the first count [B] of them real"""
    T, (B, V), P = tokens.shape[1], past.prompt.shape, past.text.shape[1]
    rows, step = jnp.arange(B)[:, None], jnp.arange(T)[None, :]
    real = step < count[:, None]
    return dataclasses.replace(
        past,
        prompt=past.prompt.at[rows, jnp.where(real, tokens, V)].set(True, mode="drop"),
        text=past.text.at[rows, jnp.where(real, past.length[:, None] + step, P)].set(tokens, mode="drop"),
        length=past.length + count,
    )


@jax.named_scope("sampling")
def remember(past: History, token: jax.Array) -> History:
    """Take one more token of each row's answer.  token [B]"""
    rows = jnp.arange(token.shape[0])
    return dataclasses.replace(
        past,
        answer=past.answer.at[rows, token].add(1),
        text=past.text.at[rows, past.length].set(token, mode="drop"),
        length=past.length + 1,
        drawn=past.drawn + 1,
    )


def penalize(logits: jax.Array, sampling: Sampling, past: History) -> jax.Array:
    """Bias, penalties and what is forbidden.  logits [B V] -> [B V]

    Repetition: Keskar et al. 2019, arXiv:1909.05858, section 4.1. Presence and frequency: as OpenAI's API defines them.
    Runs of tokens: Paulus et al. 2017, arXiv:1705.04304, section 2.5.
    """

    def by_history(logits: jax.Array) -> jax.Array:
        penalty = sampling.repetition_penalty[:, None]
        seen = past.prompt | (past.answer > 0)
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
        logits = logits - sampling.presence_penalty[:, None] * (past.answer > 0)
        return logits - sampling.frequency_penalty[:, None] * past.answer

    asked = jnp.any(
        (sampling.repetition_penalty != 1) | (sampling.presence_penalty != 0) | (sampling.frequency_penalty != 0)
    )
    logits = jax.lax.cond(asked, by_history, lambda logits: logits, logits + sampling.logit_bias)
    if past.text.shape[1]:
        repeated = lambda logits: jnp.where(repeats(past, sampling, logits.shape[1]), -jnp.inf, logits)  # noqa: E731
        logits = jax.lax.cond(jnp.any(sampling.no_repeat_ngram_size > 0), repeated, lambda logits: logits, logits)
    return by_length(logits, sampling, past)


def repeats(past: History, sampling: Sampling, vocab_size: int) -> jax.Array:
    """The ids that would complete a run of n tokens which the text has already.  -> [B V] bool

    n = 3, text  a b c a b : c, as the two tokens before the c are the last two.
    """
    (B, P), size = past.text.shape, sampling.no_repeat_ngram_size[:, None]
    at = jnp.arange(P)[None, :]

    def same(back: jax.Array, match: jax.Array) -> jax.Array:
        last = jnp.take_along_axis(past.text, jnp.maximum(past.length[:, None] - back, 0), axis=1)
        return match & ((jnp.roll(past.text, back, axis=1) == last) | (back >= size))

    match = (size > 0) & (at >= size - 1) & (at < past.length[:, None])
    match = jax.lax.fori_loop(1, jnp.max(size), same, match)
    ids = jnp.where(match, past.text, vocab_size)
    return jnp.zeros((B, vocab_size), bool).at[jnp.arange(B)[:, None], ids].set(True, mode="drop")


def by_length(logits: jax.Array, sampling: Sampling, past: History) -> jax.Array:
    """What the length of an answer forbids: ids that it must not begin with, its end too early, all but an end at last."""
    early, first = past.drawn < sampling.min_new_tokens, past.drawn == 0
    last = (past.drawn + 1 == sampling.max_new_tokens) & (sampling.forced_eos_token_id >= 0)

    def forbid(logits: jax.Array) -> jax.Array:
        held = (early[:, None] & sampling.ends) | (first[:, None] & sampling.begin_suppress_tokens)
        end = jnp.arange(logits.shape[1])[None, :] == sampling.forced_eos_token_id[:, None]
        return jnp.where(last[:, None], jnp.where(end, 0.0, -jnp.inf), jnp.where(held, -jnp.inf, logits))

    return jax.lax.cond(jnp.any(early | first | last), forbid, lambda logits: logits, logits)


@jax.jit  # traced once for the three cuts
def kept_best(distance: jax.Array, weight: jax.Array, limit: jax.Array) -> jax.Array:
    """Which tokens a rank cut keeps: those with less than `limit` of weight strictly before them.  [B V] [B V] [B] -> [B V]

    distance [B V] is how far below the best each logit lies, 0 or more. Top-k is weight 1 and limit k; top-p is weight
    p_i and limit p. Sorting a vocabulary takes longer than the model's own token; instead the largest distance that is
    kept is found bit by bit: the bits of a float that is not negative rise with it.
    """
    bits = jax.lax.bitcast_convert_type(distance, jnp.int32)

    def settle(step: jax.Array, kept: jax.Array) -> jax.Array:
        more = kept | (1 << (30 - step))
        before = jnp.sum(jnp.where(bits < more[:, None], weight, 0), axis=-1)
        return jnp.where(before < limit, more, kept)

    return bits <= jax.lax.fori_loop(0, 31, settle, jnp.zeros_like(bits[:, 0]))[:, None]


def cut(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """top_k, top_p, min_p and typical_p: what they drop becomes -inf.  logits [B V], the best of each row 0 -> [B V]

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1; Nguyen et al. 2024,
    arXiv:2407.01082; Meister et al. 2023, "Locally Typical Sampling", section 4. A cut that no row asks for is not computed.
    """

    def top_k(logits: jax.Array) -> jax.Array:
        V = logits.shape[-1]
        k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, V), V)
        return jnp.where(kept_best(-logits, jnp.ones_like(logits), k.astype(jnp.float32)), logits, -jnp.inf)

    def top_p(logits: jax.Array) -> jax.Array:
        p = jnp.where(sampling.top_p < 1, sampling.top_p, jnp.inf)
        return jnp.where(kept_best(-logits, jax.nn.softmax(logits, axis=-1), p), logits, -jnp.inf)

    def typical(logits: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        weight = jnp.exp(logprobs)
        entropy = -jnp.sum(jnp.where(weight > 0, weight * logprobs, 0), axis=-1, keepdims=True)
        p = jnp.where(sampling.typical_p < 1, sampling.typical_p, jnp.inf)
        return jnp.where(kept_best(jnp.abs(logprobs + entropy), weight, p), logits, -jnp.inf)

    logits = jax.lax.cond(jnp.any(sampling.top_k > 0), top_k, lambda logits: logits, logits)
    logits = jax.lax.cond(jnp.any(sampling.top_p < 1), top_p, lambda logits: logits, logits)
    # p >= min_p * p_best is a distance between logits
    logits = jnp.where(logits >= jnp.log(sampling.min_p)[:, None], logits, -jnp.inf)
    return jax.lax.cond(jnp.any(sampling.typical_p < 1), typical, lambda logits: logits, logits)


def warm(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Temperature and the cuts.  logits [B V] after the penalties -> [B V], the best of each row 0

    Relative to the best token: a tiny temperature takes the rest to -inf, and nothing to +inf.
    """
    temperature = jnp.where(sampling.temperature == 0, 1, sampling.temperature)[:, None]
    return cut((logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature, sampling)


def shape_logits(logits: jax.Array, sampling: Sampling, past: History) -> jax.Array:
    """Every step but the draw; the softmax of the result is what is drawn from.  logits [B V] -> [B V] float32

    Rows with temperature 0 come back after the penalties, uncut.
    """
    logits = penalize(logits, sampling, past)
    return jnp.where((sampling.temperature == 0)[:, None], logits, warm(logits, sampling))


def best(logits: jax.Array) -> jax.Array:
    """The id of the highest logit, the first of several.  [B V] -> [B] int32

    A maximum and then a minimum over ids: both run many numbers at a time, which argmax does not on a CPU.
    """
    V = logits.shape[-1]
    highest = jnp.max(logits, axis=-1, keepdims=True)
    ids = jnp.where(logits == highest, jnp.arange(V, dtype=jnp.int32)[None], V - 1)
    return jnp.min(ids, axis=-1)


def pick(weight: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the running sum of the weights passes the target.  weight [B X], target [B] -> index [B], the sum before it [B]

    Never an index of weight 0, whatever rounding does to the target.
    """
    total = jnp.cumsum(weight, axis=-1)
    last = jnp.max(jnp.where(weight > 0, jnp.arange(weight.shape[-1])[None], 0), axis=-1)
    index = jnp.minimum(jnp.sum(total <= target[:, None], axis=-1), last)
    return index, jnp.take_along_axis(total - weight, index[:, None], axis=-1)[:, 0]


def draw_one(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draw an id of each row with the probabilities softmax(logits).  logits [B V], uniform [B] in [0, 1) -> [B] int32

    One random number a row, looked up in the running sum of the probabilities: first the block of 128 ids, then the
    id in it. (A Gumbel number for every id, as jax.random.categorical has it, took ten times as long on a CPU.)
    """
    B, V = logits.shape
    weight = jnp.pad(jax.nn.softmax(logits, axis=-1), ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    blocks = jnp.sum(weight, axis=-1)
    target = uniform * jnp.sum(blocks, axis=-1)
    block, before = pick(blocks, target)
    inside, _ = pick(jnp.take_along_axis(weight, block[:, None, None], axis=1)[:, 0], target - before)
    return (block * BLOCK + inside).astype(jnp.int32)


def keep_allowed(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """Forbid what a mask does.  logits [B V], allowed [B ceil(V/32)] uint32: bit n of word w is id 32 w + n -> [B V]

    A row that may have everything has all bits set, those behind V as well; where all rows have, nothing is computed.
    """
    B, V = logits.shape

    def forbid(logits: jax.Array) -> jax.Array:
        bits = (allowed[:, :, None] >> jnp.arange(WORD, dtype=jnp.uint32)[None, None]) & 1
        return jnp.where(bits.reshape(B, -1)[:, :V] != 0, logits, -jnp.inf)

    return jax.lax.cond(jnp.any(allowed != EVERYTHING), forbid, lambda logits: logits, logits)


@jax.vmap
def uniform(seed: jax.Array, position: jax.Array) -> jax.Array:
    """A random number of each row, from 0 to 1, of its seed and position alone.  [B] uint32, [B] -> [B] float32

    Whatever JAX is set to: other generators give a row numbers that depend on the rows beside it, 64 bits give others.
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
    return jax.random.uniform(key, dtype=jnp.float32)


@jax.named_scope("sampling")
def draw(
    logits: jax.Array,
    sampling: Sampling,
    past: History,
    seeds: jax.Array,
    positions: jax.Array,
    allowed: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Choose one token per row.  logits [B V], seeds [B] uint32, positions [B] -> tokens [B] int32, logprobs [B] float32

    allowed: which ids may be chosen at all, as keep_allowed takes it; None is every one.

    The random number of a row depends on its seed and on the position that the token will stand at, and on nothing
    else: a request draws the same alone or in any batch. The logprob is that of the untouched logits, NaN where any of
    these is infinite or no number.
    """
    shaped = penalize(logits, sampling, past)
    shaped = shaped if allowed is None else keep_allowed(shaped, allowed)
    greedy = sampling.temperature == 0
    token = best(shaped)
    token = jax.lax.cond(
        jnp.all(greedy),
        lambda: token,
        lambda: jnp.where(greedy, token, draw_one(warm(shaped, sampling), uniform(seeds, positions))),
    )
    token = tag(token, "token")
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
    return token, tag(jnp.where(jnp.all(jnp.isfinite(logits), axis=-1), logprob, jnp.nan), "logprob")
