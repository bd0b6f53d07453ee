"""What a user asks for, made into arrays: every argument is honoured, or refused with a RequestError that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from nanollm_jax.answer import Answer
from nanollm_jax.config import check_count
from nanollm_jax.errors import ConfigError, RequestError
from nanollm_jax.loading import Model
from nanollm_jax.profiling import Timings
from nanollm_jax.sampling import Sampling


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
) -> Request:
    """Every argument honoured, or a RequestError."""
    for name, value in (("max_new_tokens", max_new_tokens), ("chunk", chunk)):
        try:
            check_count(name, value)
        except ConfigError as error:
            raise RequestError(str(error)) from None
    longest = max(map(len, prompts))
    if longest + max_new_tokens > model.config.max_positions:
        raise RequestError(
            f"a prompt of {longest} tokens + {max_new_tokens} new tokens is more than the model's "
            f"{model.config.max_positions} positions; shorten it or ask for "
            f"{max(model.config.max_positions - longest, 0)} new tokens or fewer."
        )
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not isinstance(end, str) or not end for end in stop):
        raise RequestError(f"stop is {stop!r}; expected texts of at least one character.")
    if stop and model.tokenizer is None:
        raise RequestError(
            "this checkpoint has no tokenizer files, so stop strings cannot be looked for; leave stop empty."
        )
    settings = model.defaults.sampling if sampling is None else sampling
    if not isinstance(settings, Sampling):
        raise RequestError(f"sampling is {type(settings).__name__}; expected a nanollm_jax.Sampling.")
    return Request(
        prompts,
        [
            Answer(prompt, model.tokenizer, eos_ids=model.defaults.eos_ids, stop=stop, max_new_tokens=max_new_tokens)
            for prompt in prompts
        ],
        max_new_tokens,
        settings.rows(len(prompts), model.config.vocab_size),
        check_seeds(seed, len(prompts)),
        chunk,
    )


def fill_up(request: Request, multiple: int) -> Request:
    """The request with its last row repeated until the rows divide: a mesh splits them evenly. Nobody sees the answers."""
    more = -len(request.prompts) % multiple
    repeat = lambda rows: np.concatenate([rows, np.repeat(rows[-1:], more, axis=0)])  # noqa: E731
    return dataclasses.replace(
        request,
        prompts=request.prompts + [request.prompts[-1]] * more,
        sampling=jax.tree.map(repeat, request.sampling),
        seeds=repeat(request.seeds),
    )


def check_seeds(seed: Any, batch: int) -> np.ndarray:
    """One number or one per row -> [B] uint32."""
    seeds = (
        [seed] * batch
        if isinstance(seed, int | np.integer)
        else list(seed)
        if isinstance(seed, Sequence | np.ndarray)
        else [seed]
    )
    if len(seeds) != batch:
        raise RequestError(f"seed has {len(seeds)} values for {batch} prompts; give one number, or one per prompt.")
    for value in seeds:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= value < 2**32:
            raise RequestError(f"seed is {value!r}; expected a whole number from 0 to 2**32 - 1.")
    return np.asarray(seeds, np.uint32)


def encode_prompts(model: Model, prompts: Any) -> tuple[list[list[int]], bool]:
    """Every shape of prompts -> lists of ids, and whether it was a single one."""
    if isinstance(prompts, str):
        return [encode(model, prompts)], True
    if not isinstance(prompts, Sequence | np.ndarray | jax.Array):
        raise RequestError(
            f"prompts is {type(prompts).__name__}; expected a text, a list of texts, or lists of token ids."
        )
    prompts = list(prompts) if isinstance(prompts, Sequence) else np.asarray(prompts).tolist()
    if prompts and all(isinstance(token, int | np.integer) for token in prompts):
        return [check_ids(model, prompts)], True
    return [encode(model, row) if isinstance(row, str) else check_ids(model, row) for row in prompts], False


def encode(model: Model, text: str) -> list[int]:
    """A text prompt -> ids, with BOS where the model wants one."""
    if model.tokenizer is None:
        raise RequestError(
            "this checkpoint has no tokenizer files, so a text prompt cannot be read; pass a list of token ids."
        )
    ids = model.tokenizer.encode(text)
    if not ids:
        raise RequestError(
            "the prompt is empty and this tokenizer puts no BOS before a text; give it at least one token."
        )
    return ids


def check_ids(model: Model, ids: Any) -> list[int]:
    """A prompt given as ids, as it is."""
    if not isinstance(ids, Sequence | np.ndarray | jax.Array) or isinstance(ids, str | bytes):
        raise RequestError(f"a prompt is {ids!r}; expected a text or a list of token ids.")
    ids = list(ids) if isinstance(ids, Sequence) else np.asarray(ids).tolist()
    if not ids:
        raise RequestError("a prompt has no tokens; give it at least one, for example the BOS id.")
    for token in ids:
        if (
            not isinstance(token, int | np.integer)
            or isinstance(token, bool)
            or not 0 <= token < model.config.vocab_size
        ):
            raise RequestError(
                f"a prompt has token {token!r}; ids of this model go from 0 to {model.config.vocab_size - 1}."
            )
    return [int(token) for token in ids]
