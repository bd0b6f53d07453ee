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
    B, T = tokens.shape
    real = jnp.arange(T)[None, :] < lengths[:, None]
    rows = jnp.arange(B)[:, None]
    prompt = jnp.zeros((B, vocab_size), bool).at[rows, jnp.where(real, tokens, vocab_size)].set(True, mode="drop")
    return History(prompt=prompt, answer=jnp.zeros((B, vocab_size), jnp.int32))


@jax.named_scope("sampling")
def remember(past: History, token: jax.Array) -> History:
    """Count one more token of each row's answer.  token [B]"""
    return dataclasses.replace(past, answer=past.answer.at[jnp.arange(token.shape[0]), token].add(1))


def penalize(logits: jax.Array, sampling: Sampling, past: History) -> jax.Array:
    """Bias and penalties.  logits [B V] -> [B V]

    Repetition: Keskar et al. 2019, arXiv:1909.05858, section 4.1. Presence and frequency: as OpenAI's API defines them.
    """
    logits = logits + sampling.logit_bias
    penalty = sampling.repetition_penalty[:, None]
    seen = past.prompt | (past.answer > 0)
    logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    logits = logits - sampling.presence_penalty[:, None] * (past.answer > 0)
    return logits - sampling.frequency_penalty[:, None] * past.answer


def top_k_cut(ordered: jax.Array, k: jax.Array) -> jax.Array:
    """The lowest logit that top-k keeps.  ordered [B V] falling, k [B] (0: all) -> [B]"""
    V = ordered.shape[-1]
    last = jnp.where(k > 0, jnp.minimum(k, V), V) - 1
    return jnp.take_along_axis(ordered, last[:, None], axis=-1)[:, 0]


def top_p_cut(ordered: jax.Array, p: jax.Array) -> jax.Array:
    """The lowest logit that top-p keeps.  ordered [B V] falling, p [B] (1: all) -> [B]

    A token stays while the tokens before it have less than p together; the first always stays.
    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (before < p[:, None]) | (p[:, None] >= 1)
    kept = kept.at[:, 0].set(True)
    return jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1)


def min_p_cut(best: jax.Array, min_p: jax.Array) -> jax.Array:
    """The lowest logit that min-p keeps: p >= min_p * p_best is a distance between logits.  best [B], min_p [B] -> [B]

    Nguyen et al. 2024, arXiv:2407.01082.
    """
    return best + jnp.log(min_p)


def cut(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """top_k, top_p and min_p: what they drop becomes -inf.  logits [B V], after temperature -> [B V]

    The vocabulary is sorted only when some row asks for top_k or top_p.
    """

    def by_rank() -> jax.Array:
        ordered = -jnp.sort(-logits, axis=-1)
        lowest = top_k_cut(ordered, sampling.top_k)
        ordered = jnp.where(ordered >= lowest[:, None], ordered, -jnp.inf)
        return jnp.maximum(lowest, top_p_cut(ordered, sampling.top_p))

    ranked = jnp.any((sampling.top_k > 0) | (sampling.top_p < 1))
    lowest = jax.lax.cond(ranked, by_rank, lambda: jnp.full(logits.shape[:1], -jnp.inf))
    lowest = jnp.maximum(lowest, min_p_cut(jnp.max(logits, axis=-1), sampling.min_p))
    return jnp.where(logits >= lowest[:, None], logits, -jnp.inf)


def shape_logits(logits: jax.Array, sampling: Sampling, past: History) -> jax.Array:
    """Every step but the draw; the softmax of the result is what is drawn from.  logits [B V] -> [B V] float32

    Rows with temperature 0 come back after the penalties, uncut.
    """
    logits = penalize(logits, sampling, past)
    greedy = (sampling.temperature == 0)[:, None]
    best = jnp.max(logits, axis=-1, keepdims=True)
    # relative to the best token: a tiny temperature takes the rest to -inf, and nothing to +inf
    warm = (logits - best) / jnp.where(greedy, 1, sampling.temperature[:, None])
    return jnp.where(greedy, logits, cut(warm, sampling))


@jax.named_scope("sampling")
def draw(
    logits: jax.Array, sampling: Sampling, past: History, seeds: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Choose one token per row.  logits [B V], seeds [B] uint32, positions [B] -> tokens [B] int32, logprobs [B] float32

    The random numbers of a row depend on its seed and on the position that the token will stand at, and on nothing
    else: a request draws the same alone or in any batch. The logprob is that of the untouched logits.
    """
    shaped = shape_logits(logits, sampling, past)

    def one(row: jax.Array, seed: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), position), row)

    drawn = jax.vmap(one)(shaped, seeds, positions)
    token = jnp.where(sampling.temperature == 0, jnp.argmax(shaped, axis=-1), drawn).astype(jnp.int32)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return token, jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]
