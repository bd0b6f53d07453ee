"""The host's side of generating: one prefill, then chunks of tokens until every answer has ended.

The compiled programs never see text, and the host never sees logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import overload

import jax
import numpy as np

from nanollm_jax import buckets
from nanollm_jax.answer import Generation
from nanollm_jax.cache import init_cache
from nanollm_jax.collectives import whole
from nanollm_jax.config import ModelConfig
from nanollm_jax.decode import State, draw_next, enlarge, init_state, read_prompts, write_tokens
from nanollm_jax.errors import RequestError
from nanollm_jax.loading import Model
from nanollm_jax.profiling import Timings, timed
from nanollm_jax.request import Request, check_request, encode_prompts
from nanollm_jax.settings import Sampling

CHUNK, STREAM_CHUNK = 16, 4  # tokens per call of the compiled loop, of generate and of stream


@overload
def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts as well, and is one prompt
    model: Model,
    prompts: str | Sequence[int],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | Sequence[int] = ...,
    stop: str | Sequence[str] = ...,
    stop_ids: int | Sequence[int] = ...,
    chunk: int = ...,
) -> Generation: ...


@overload
def generate(
    model: Model,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | Sequence[int] = ...,
    stop: str | Sequence[str] = ...,
    stop_ids: int | Sequence[int] = ...,
    chunk: int = ...,
) -> list[Generation]: ...


def generate(
    model: Model,
    prompts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    stop: str | Sequence[str] = (),
    stop_ids: int | Sequence[int] = (),
    chunk: int = CHUNK,
) -> Generation | list[Generation]:
    """Continue prompts, all rows in one batch. One prompt -> a Generation; a list of prompts -> a list of them, in order.

    prompts    a text, a list of texts, a list of ids (one prompt), or a list of lists of ids, which are taken as they are
    sampling   None is what the checkpoint's generation_config.json says, greedy where it says nothing
    seed       one number, 0 to 2**32 - 1, for every row, or one per row; draws depend on (seed, position) only
    stop       texts that end an answer and are not part of it, besides the model's end-of-sequence ids; one that spells a
               special token, which prints nothing, is that token's id as well
    stop_ids   ids that end an answer, too
    chunk      tokens per call of the compiled loop, after which ends are looked for; it changes no result
    Raises RequestError naming the argument that cannot be honoured, NumericsError where the model computes no numbers.
    """
    rows, single = encode_prompts(model, prompts)
    if not rows:
        return []
    request = check_request(model, rows, max_new_tokens, sampling, seed, stop, chunk, stop_ids=stop_ids)
    for _ in run(model, request):
        pass
    results = [answer.result() for answer in request.answers]
    return results[0] if single else results


def stream(
    model: Model,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    stop_ids: int | Sequence[int] = (),
    chunk: int = STREAM_CHUNK,
) -> Stream:
    """Continue one prompt and yield its text as it is written, piece by piece. Joined, the pieces are generate's text.

    Arguments as in generate, for one prompt, and checked before the first piece is asked for. A piece is whole characters, and
    text that may turn out to be the beginning of a stop string is held back until that is known.
    """
    rows, single = encode_prompts(model, prompt)
    if not single:
        raise RequestError("stream takes one prompt, a text or a list of ids; use generate for several.")
    request = check_request(model, rows, max_new_tokens, sampling, seed, stop, chunk, stop_ids=stop_ids)
    return Stream(request, run(model, request))


class Stream(Iterator[str]):
    """The pieces of one answer, in order. `generation` is the answer so far, `timings` what it cost so far."""

    def __init__(self, request: Request, chunks: Iterator[None]) -> None:
        """A checked request of one prompt, and what answers it; nothing runs before the first piece is asked for."""
        self.request = request
        self.shown = 0
        self.chunks = chunks

    def __next__(self) -> str:
        """The next text that is certain. Raises StopIteration after the last."""
        answer = self.request.answers[0]
        while answer.certain() == self.shown:
            next(self.chunks)
        piece = answer.text[self.shown : answer.certain()]
        self.shown += len(piece)
        return piece

    @property
    def generation(self) -> Generation:
        """The answer as far as it was computed; complete when finish_reason is not empty."""
        return self.request.answers[0].result()

    @property
    def timings(self) -> Timings:
        """Seconds and tokens so far."""
        return self.request.timings


def run(model: Model, request: Request) -> Iterator[None]:
    """Prefill, then chunks of decode until every answer has ended; yields after each chunk, with the answers grown."""
    timings = request.timings
    timings.prompt_tokens = sum(map(len, request.prompts))
    with timed(timings, "prefill_seconds"):
        state = jax.block_until_ready(read(model, request.prompts))
    chunks = write(model, request, state, max(map(len, request.prompts)))
    while not all(answer.finish_reason for answer in request.answers):
        with timed(timings, "decode_seconds"):
            drawn, logprobs = next(chunks)
        timings.note_first_token()
        rows = len(request.answers)
        for answer, ids, scores in zip(request.answers, drawn[:rows], logprobs[:rows], strict=True):
            for token, logprob in zip(ids.tolist(), scores.tolist(), strict=True):
                answer.push(token, logprob)
        timings.new_tokens = sum(len(answer.token_ids) for answer in request.answers)
        yield


def read(model: Model, prompts: list[list[int]]) -> State:
    """The prompts, read, in the smallest cache that holds them. [B] rows, or a few more."""
    config = model.config
    B = buckets.rows(len(prompts), model.dp)
    longest = max(map(len, prompts))
    capacity = buckets.capacity(min(buckets.pieces(longest, B)[0], longest), config.max_positions)
    cache = init_cache(config, B, capacity, model.params["embedding"]["tokens"].dtype, model.mesh)
    state = init_state(dataclasses.replace(cache, fresh=True), config)
    return read_behind(model, prompts + [prompts[-1][:1]] * (B - len(prompts)), state, 0)


def read_behind(model: Model, prompts: list[list[int]], state: State, held: int) -> State:
    """Prompts, one per row, read behind the `held` positions that each row of the cache has; in pieces of bounded size."""
    config, B = model.config, len(prompts)
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths.max())
    sizes = buckets.pieces(longest, B)
    if config.switch_length is not None:  # how a text is read depends on its length, so all of it at once
        sizes = [sum(sizes)]
    tokens = np.zeros((B, sum(sizes)), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    start = 0
    for size in sizes:
        state = roomy(state, config, held + min(start + size, longest))
        count = np.clip(lengths - start, 0, size)
        state = read_prompts(model.params, tokens[:, start : start + size], count, state, config=config)
        start += size
    return state


def write(model: Model, request: Request, state: State, longest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and logprobs, [B n] each time: one token first, which waits for no loop to be compiled or run, then chunks."""
    sampling, seeds = jax.tree.map(lambda rows: padded(rows, state.cache.batch), (request.sampling, request.seeds))
    tokens, logprobs = draw_next(state, sampling, seeds, config=model.config)
    yield whole(tokens), whole(logprobs)
    seen = 1  # the loop draws it again
    for tokens, logprobs in chunks(model, request, state, longest, sampling, seeds):
        yield whole(tokens)[:, seen:], whole(logprobs)[:, seen:]
        seen = 0


def chunks(
    model: Model, request: Request, state: State, longest: int, sampling: Sampling, seeds: np.ndarray
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Chunks of tokens and logprobs, [B chunk] each: the next one is on its way before the last one is looked at.

    The last may run past max_new_tokens and past the model's positions: what it writes there is thrown away.
    Where a row outgrows longrope's original length, a chunk ends, and all rows are read again: beyond it every
    position is turned otherwise.
    """
    config, end = model.config, 0
    grown = [(config.switch_length or 0) + 1 - len(prompt) for prompt in request.prompts]
    pending, written = None, [list(prompt) for prompt in request.prompts]
    while end < request.max_new_tokens:
        steps = min([request.chunk, *(at - end for at in grown if at > end)]) if config.switch_length else request.chunk
        end += steps
        state = roomy(state, config, min(longest + end, config.max_positions))
        tokens, logprobs, state = write_tokens(model.params, state, sampling, seeds, config=config, steps=steps)
        if pending:
            yield pending
        pending = tokens, logprobs
        if config.switch_length:
            for text, ids in zip(written, whole(tokens).tolist(), strict=False):  # not the added rows
                text += ids
            if end in grown and end < request.max_new_tokens:
                state = reread(model, written, state)
    if pending:
        yield pending


def reread(model: Model, texts: list[list[int]], state: State) -> State:
    """The state of rows with these texts, as if all of them had been read at once."""
    return dataclasses.replace(read(model, texts), past=state.past)


def padded(rows: np.ndarray, batch: int) -> np.ndarray:
    """One entry per row -> as many as the batch has, the last one repeated."""
    return np.concatenate([rows, np.repeat(rows[-1:], batch - len(rows), axis=0)])


def roomy(state: State, config: ModelConfig, positions: int) -> State:
    """The state with room for so many positions a row, one bucket larger at a time if need be."""
    while state.cache.capacity < positions:
        capacity = buckets.capacity(state.cache.capacity + 1, config.max_positions)
        state = enlarge(state, config=config, capacity=capacity)
    return state
