"""From logits to the next token: bias and penalties, temperature, the cuts, then one draw per row.

The steps and their order are those of Hugging Face transformers' processors:

    logit_bias            added to the logits
    repetition_penalty    on every id of the prompt or the answer: positive logits divided, negative ones multiplied
    presence_penalty      subtracted once from every id of the answer
    frequency_penalty     subtracted from every id of the answer as often as it occurs
    temperature           divides; 0 takes the best token here and skips the rest
    top_k                 keeps the k best
    top_p                 keeps the fewest best whose probabilities reach p
    min_p                 keeps what is at least min_p times as probable as the best

The three cuts are thresholds on the logit, so tokens that tie with the last one kept are kept too.
What no row asks for is not computed: a cond around each group of steps.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.errors import RequestError

# name -> (what is allowed, in words; the same as a test)
ALLOWED = {
    "temperature": ("0 or more; 0 is greedy", lambda value: value >= 0),
    "top_k": ("a whole number, 0 (off) or more", lambda value: value >= 0 and value == int(value)),
    "top_p": ("above 0 and at most 1 (off)", lambda value: 0 < value <= 1),
    "min_p": ("from 0 (off) to 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": ("above 0; 1 is off", lambda value: value > 0),
    "presence_penalty": ("a finite number; 0 is off", lambda value: True),
    "frequency_penalty": ("a finite number; 0 is off", lambda value: True),
}


BLOCK = 128  # ids that the draw looks at together


@flax.struct.dataclass
class Sampling:
    """How to choose the next token. Each field is one value for all rows, or a sequence with one per row.

    logit_bias maps token ids to what is added to their logits (-inf forbids an id); or one such mapping per row.
    Inside the compiled programs every field is an array [B] and logit_bias is [B V] float32, so that changing a
    setting never compiles anything.
    """

    temperature: Any = 1.0
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    repetition_penalty: Any = 1.0
    presence_penalty: Any = 0.0
    frequency_penalty: Any = 0.0
    logit_bias: Any = None

    def rows(self, batch: int, vocab_size: int) -> Sampling:
        """The same settings as arrays, one value per row. Raises RequestError for a value or a length that cannot be."""
        settings = {name: per_row(name, getattr(self, name), batch) for name in ALLOWED}
        return Sampling(
            **{
                name: np.asarray(values, np.int32 if name == "top_k" else np.float32)
                for name, values in settings.items()
            },
            logit_bias=bias_rows(self.logit_bias, batch, vocab_size),
        )


def per_row(name: str, value: Any, batch: int) -> list[float]:
    """One checked number per row."""
    values = list(value) if isinstance(value, Sequence | np.ndarray | jax.Array) and np.ndim(value) else [value] * batch
    if len(values) != batch:
        raise RequestError(f"{name} has {len(values)} values for {batch} prompts; give one number, or one per prompt.")
    words, allowed = ALLOWED[name]
    for number in values:
        real = isinstance(number, numbers.Real | np.number) or (hasattr(number, "dtype") and np.ndim(number) == 0)
        if not real or isinstance(number, bool) or not math.isfinite(number) or not allowed(number):
            raise RequestError(f"{name} is {number!r}; expected {words}.")
        if name == "top_k" and number >= 2**31:
            raise RequestError(f"top_k is {number!r}; expected less than 2**31.")
    return values


def bias_rows(bias: Any, batch: int, vocab_size: int) -> np.ndarray:
    """A mapping, or one per row, or None -> [B V] float32."""
    mappings = list(bias) if isinstance(bias, Sequence) else [bias] * batch
    if len(mappings) != batch:
        raise RequestError(f"logit_bias has {len(mappings)} mappings for {batch} prompts; give one, or one per prompt.")
    dense = np.zeros((batch, vocab_size), np.float32)
    for row, mapping in enumerate(mappings):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise RequestError(f"logit_bias is {mapping!r}; expected a mapping from token ids to numbers.")
        for token, value in (mapping or {}).items():
            if isinstance(token, bool) or not isinstance(token, int | np.integer) or not 0 <= token < vocab_size:
                raise RequestError(
                    f"logit_bias names token {token!r}; ids of this model go from 0 to {vocab_size - 1}."
                )
            if not isinstance(value, numbers.Real) or math.isnan(value) or value == math.inf:
                raise RequestError(
                    f"logit_bias of token {token} is {value!r}; expected a number, or -inf to forbid it."
                )
            dense[row, token] = value
        if mapping and np.all(np.isneginf(dense[row])):
            raise RequestError("logit_bias forbids every token of the vocabulary; leave at least one.")
    return dense


@flax.struct.dataclass
class History:
    """What the penalties look at: which ids a row's prompt had, and how often its answer has each.  [B V] bool, [B V] int32"""

    prompt: jax.Array
    answer: jax.Array


def history(tokens: jax.Array, lengths: jax.Array, vocab_size: int) -> History:
    """The history of rows that have a prompt and no answer yet.  tokens [B T], lengths [B]"""
    B = tokens.shape[0]
    nothing = History(prompt=jnp.zeros((B, vocab_size), bool), answer=jnp.zeros((B, vocab_size), jnp.int32))
    return read(nothing, tokens, lengths)


def read(past: History, tokens: jax.Array, count: jax.Array) -> History:
    """Take more of each row's prompt.  tokens [B T], the first count [B] of them real"""
    B, T = tokens.shape
    V = past.prompt.shape[1]
    ids = jnp.where(jnp.arange(T)[None, :] < count[:, None], tokens, V)
    return dataclasses.replace(past, prompt=past.prompt.at[jnp.arange(B)[:, None], ids].set(True, mode="drop"))


@jax.named_scope("sampling")
def remember(past: History, token: jax.Array) -> History:
    """Count one more token of each row's answer.  token [B]"""
    return dataclasses.replace(past, answer=past.answer.at[jnp.arange(token.shape[0]), token].add(1))


def penalize(logits: jax.Array, sampling: Sampling, past: History) -> jax.Array:
    """Bias and penalties.  logits [B V] -> [B V]

    Repetition: Keskar et al. 2019, arXiv:1909.05858, section 4.1. Presence and frequency: as OpenAI's API defines them.
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
    return jax.lax.cond(asked, by_history, lambda logits: logits, logits + sampling.logit_bias)


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
    """top_k, top_p and min_p: what they drop becomes -inf.  logits [B V], the best of each row 0 -> [B V]

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1; Nguyen et al. 2024,
    arXiv:2407.01082. A cut that no row asks for is not computed.
    """

    def top_k(logits: jax.Array) -> jax.Array:
        V = logits.shape[-1]
        k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, V), V)
        return jnp.where(kept_best(-logits, jnp.ones_like(logits), k.astype(jnp.float32)), logits, -jnp.inf)

    def top_p(logits: jax.Array) -> jax.Array:
        p = jnp.where(sampling.top_p < 1, sampling.top_p, jnp.inf)
        return jnp.where(kept_best(-logits, jax.nn.softmax(logits, axis=-1), p), logits, -jnp.inf)

    logits = jax.lax.cond(jnp.any(sampling.top_k > 0), top_k, lambda logits: logits, logits)
    logits = jax.lax.cond(jnp.any(sampling.top_p < 1), top_p, lambda logits: logits, logits)
    # p >= min_p * p_best is a distance between logits
    return jnp.where(logits >= jnp.log(sampling.min_p)[:, None], logits, -jnp.inf)


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


@jax.named_scope("sampling")
def draw(
    logits: jax.Array, sampling: Sampling, past: History, seeds: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Choose one token per row.  logits [B V], seeds [B] uint32, positions [B] -> tokens [B] int32, logprobs [B] float32

    The random number of a row depends on its seed and on the position that the token will stand at, and on nothing
    else: a request draws the same alone or in any batch. The logprob is that of the untouched logits.
    """
    shaped = penalize(logits, sampling, past)
    greedy = sampling.temperature == 0
    uniform = jax.vmap(lambda seed, position: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position)))
    token = best(shaped)
    token = jax.lax.cond(
        jnp.all(greedy),
        lambda: token,
        lambda: jnp.where(greedy, token, draw_one(warm(shaped, sampling), uniform(seeds, positions))),
    )
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, chosen - jax.nn.logsumexp(logits, axis=-1)
