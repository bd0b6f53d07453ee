"""What a user asks for, made into arrays: every argument is honoured, or refused with a RequestError that names it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanollm_jax.answer import Answer
from nanollm_jax.checks import check_counts, listed, whole
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.loading import Model
from nanollm_jax.profiling import Timings
from nanollm_jax.settings import Sampling, token_id


@dataclass(frozen=True)
class Request:
    """A checked request: what goes to the device, and the answers that grow from it."""

    prompts: list[list[int]]
    answers: list[Answer]
    max_new_tokens: int
    sampling: Sampling
    seeds: np.ndarray
    chunk: int
    timings: Timings = field(default_factory=Timings)


def check_request(
    model: Model,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling | None,
    seed: Any,
    stop: Any,
    chunk: int,
    *,
    stop_ids: Any = (),
    chat: bool = False,
) -> Request:
    """Every argument honoured, or a RequestError.  chat: the tokenizer's EOS, which ends a turn, ends the answer too"""
    max_new_tokens, chunk = check_counts(max_new_tokens=max_new_tokens, chunk=chunk)
    chunk = min(chunk, model.config.max_positions)  # a longer one would only write what is thrown away
    longest = max(map(len, prompts))
    if longest + max_new_tokens > model.config.max_positions:
        room, left = model.config.max_positions - max_new_tokens, model.config.max_positions - longest
        offer = f"shorten it to {room} tokens or fewer" if room > 0 else "shorten it"
        offer += f", or ask for {left} new tokens or fewer" if left > 0 else "" if room > 0 else ", and ask for fewer"
        raise RequestError(
            f"a prompt of {longest} tokens + {max_new_tokens} new tokens is more than the model's "
            f"{model.config.max_positions} positions; {offer}."
        )
    texts, ids = check_stops(model, stop, stop_ids)
    eos = model.tokenizer.eos_id if chat and model.tokenizer is not None else None
    named = {*model.defaults.eos_ids, *ids, *([] if eos is None else [eos])}
    ends = tuple(sorted(token for token in named if token < model.config.vocab_size))  # no other is ever drawn
    settings = model.defaults.sampling if sampling is None else sampling
    if not isinstance(settings, Sampling):
        raise RequestError(f"sampling is {type(settings).__name__}; expected a nanollm_jax.Sampling.")
    return Request(
        prompts,
        [
            Answer(prompt, model.tokenizer, eos_ids=ends, stop=texts, max_new_tokens=max_new_tokens)
            for prompt in prompts
        ],
        max_new_tokens,
        settings.rows(len(prompts), model.config.vocab_size, ends=ends, max_new_tokens=max_new_tokens),
        check_seeds(seed, len(prompts)),
        chunk,
    )


def check_stops(model: Model, stop: Any, stop_ids: Any) -> tuple[tuple[str, ...], list[int]]:
    """Stop strings and stop ids, the checkpoint's own besides. A string that spells a special token is also its id."""
    texts = [stop] if isinstance(stop, str) else listed(stop)
    if texts is None or any(not isinstance(end, str) or not end for end in texts):
        raise RequestError(f"stop is {shown(stop)}; expected a text, or a list of texts, of at least one character.")
    if texts and model.tokenizer is None:
        raise RequestError(
            "this checkpoint has no tokenizer files, so stop strings cannot be looked for; leave stop empty, or give stop_ids."
        )
    ids = [stop_ids] if whole(stop_ids) is not None else listed(stop_ids)
    if ids is None:
        raise RequestError(f"stop_ids is {shown(stop_ids)}; expected a token id or a list of them.")
    found = [token_id("stop_ids", token, model.config.vocab_size) for token in ids]
    if model.tokenizer is None:
        return (), found
    tokenizer, V = model.tokenizer, model.config.vocab_size
    special = {tokenizer.piece(token): token for token in tokenizer.special_ids if token < V and tokenizer.piece(token)}
    for text in texts:
        inside = [name for name in special if name in text]
        if inside and text not in special:
            raise RequestError(
                f"stop {shown(text)} has the special token {max(inside, key=len)!r} among other characters, and special "
                "tokens print nothing; give the token alone, or the text alone."
            )
    both = (*texts, *model.defaults.stop)
    return both, found + [special[text] for text in both if text in special]


def check_seeds(seed: Any, batch: int) -> np.ndarray:
    """One number or one per row -> [B] uint32."""
    given = listed(seed)
    seeds = [seed] * batch if given is None else given
    if len(seeds) != batch:
        raise RequestError(f"seed has {len(seeds)} values for {batch} prompts; give one number, or one per prompt.")
    numbers = [whole(value) for value in seeds]
    for value, number in zip(seeds, numbers, strict=True):
        if number is None or not 0 <= number < 2**32:
            raise RequestError(f"seed is {shown(value)}; expected a whole number from 0 to 2**32 - 1.")
    return np.asarray(numbers, np.uint32)


def encode_prompts(model: Model, prompts: Any) -> tuple[list[list[int]], bool]:
    """Every shape of prompts -> lists of ids, and whether it was a single one."""
    if isinstance(prompts, str):
        return [encode(model, prompts)], True
    rows = listed(prompts)
    if rows is None:
        raise RequestError(
            f"prompts is {type(prompts).__name__}; expected a text, a list of texts, or lists of token ids."
        )
    if rows and all(whole(token) is not None for token in rows):
        return [check_ids(model, rows)], True
    return [encode(model, row) if isinstance(row, str) else check_ids(model, row) for row in rows], False


def encode(model: Model, text: str, *, special: bool = False) -> list[int]:
    """A text prompt -> ids, with a BOS where the model wants one, as generate encodes it.

    special: "<|fim_prefix|>" and the like in the text are those tokens, where otherwise they are ordinary letters: for
    prompts that a program puts together, never for what a user types. Raises RequestError for what is no text, for one
    without tokens, and where the checkpoint has no tokenizer.
    """
    if model.tokenizer is None:
        raise RequestError(
            "this checkpoint has no tokenizer files, so a text prompt cannot be read; pass a list of token ids."
        )
    ids = model.tokenizer.encode(text, special=special)
    if not ids:
        raise RequestError(
            "the prompt is empty and this tokenizer puts no BOS before a text; give it at least one token."
        )
    return known(model, ids)


def known(model: Model, ids: list[int]) -> list[int]:
    """The ids of a text. Raises RequestError for a token that the tokenizer has and the model does not."""
    if ids and max(ids) >= model.config.vocab_size:
        assert model.tokenizer is not None
        name = model.tokenizer.piece(max(ids))
        raise RequestError(
            f"the text has the token {name!r}, {max(ids)}, and ids of this model go from 0 to {model.config.vocab_size - 1}: "
            "its tokenizer has tokens that it was not made for; leave this one out."
        )
    return ids


def check_ids(model: Model, ids: Any) -> list[int]:
    """A prompt given as ids, as it is, in Python's own numbers."""
    tokens = listed(ids)
    if tokens is None:
        raise RequestError(f"a prompt is {shown(ids)}; expected a text or a list of token ids.")
    if not tokens:
        raise RequestError("a prompt has no tokens; give it at least one, for example the BOS id.")
    found = [whole(token) for token in tokens]
    for token, number in zip(tokens, found, strict=True):
        if number is None or not 0 <= number < model.config.vocab_size:
            raise RequestError(
                f"a prompt has token {shown(token)}; ids of this model go from 0 to {model.config.vocab_size - 1}."
            )
    return [number for number in found if number is not None]
