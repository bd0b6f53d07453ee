"""The host's side of generating: one prefill, then chunks of tokens until every answer has ended.

The compiled programs never see text, and the host never sees logits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import overload

import jax
import numpy as np

from nanollm_jax.answer import Generation
from nanollm_jax.cache import init_cache
from nanollm_jax.decode import prefill, write_tokens
from nanollm_jax.errors import RequestError
from nanollm_jax.loading import Model
from nanollm_jax.profiling import CompileWatch, Timings
from nanollm_jax.request import Request, check_request, encode_prompts
from nanollm_jax.sampling import Sampling

SMALLEST_BUCKET = 16  # tokens; shorter prompts are padded to it


@overload
def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts as well, and is one prompt
    model: Model,
    prompts: str | Sequence[int],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | Sequence[int] = ...,
    stop: str | Sequence[str] = ...,
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
    chunk: int = 32,
) -> Generation | list[Generation]:
    """Continue prompts, all rows in one batch. One prompt -> a Generation; a list of prompts -> a list of them, in order.

    prompts    a text, a list of texts, a list of ids (one prompt), or a list of lists of ids, which are taken as they are
    sampling   None is what the checkpoint's generation_config.json says, greedy where it says nothing
    seed       one number, 0 to 2**32 - 1, for every row, or one per row; draws depend on (seed, position) only
    stop       texts that end an answer and are not part of it, besides the model's end-of-sequence ids
    chunk      tokens per call of the compiled loop, after which ends are looked for; it changes no result
    Raises RequestError naming the argument that cannot be honoured.
    """
    rows, single = encode_prompts(model, prompts)
    if not rows:
        return []
    request = check_request(model, rows, max_new_tokens, sampling, seed, stop, chunk)
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
    chunk: int = 4,
) -> Stream:
    """Continue one prompt and yield its text as it is written, piece by piece. Joined, the pieces are generate's text.

    Arguments as in generate, for one prompt, and checked before the first piece is asked for. A piece is whole characters, and
    text that may turn out to be the beginning of a stop string is held back until that is known.
    """
    rows, single = encode_prompts(model, prompt)
    if not single:
        raise RequestError("stream takes one prompt, a text or a list of ids; use generate for several.")
    request = check_request(model, rows, max_new_tokens, sampling, seed, stop, chunk)
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


def bucket(size: int, limit: int) -> int:
    """The smallest power of two that holds `size`, from SMALLEST_BUCKET to limit: few shapes, so few compilations."""
    return min(max(SMALLEST_BUCKET, 1 << (size - 1).bit_length()), limit)


def run(model: Model, request: Request) -> Iterator[None]:
    """Prefill, then chunks of decode until every answer has ended; yields after each chunk, with the answers grown."""
    config, prompts = model.config, request.prompts
    longest = max(map(len, prompts))
    T = bucket(longest, config.max_positions)
    capacity = bucket(T + request.max_new_tokens, config.max_positions)  # from T: as many shapes as there are buckets
    tokens = np.zeros((len(prompts), T), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    cache = init_cache(config, len(prompts), capacity, model.params["embedding"]["tokens"].dtype)
    timings = request.timings
    timings.prompt_tokens = int(lengths.sum())
    begun = time.perf_counter()
    with CompileWatch() as watch:
        state = jax.block_until_ready(prefill(model.params, tokens, lengths, cache, config=config))
    timings.compile_seconds += watch.seconds
    timings.prefill_seconds = time.perf_counter() - begun - watch.seconds
    while not all(answer.finish_reason for answer in request.answers):
        begun = time.perf_counter()
        with CompileWatch() as watch:
            # the last chunk may run past max_new_tokens and past the cache: what it writes there is thrown away
            drawn, logprobs, state = write_tokens(
                model.params, state, request.sampling, request.seeds, config=config, steps=request.chunk
            )
            drawn, logprobs = np.asarray(drawn), np.asarray(logprobs)
        timings.compile_seconds += watch.seconds
        timings.decode_seconds += time.perf_counter() - begun - watch.seconds
        timings.first_token_seconds = timings.first_token_seconds or timings.prefill_seconds + timings.decode_seconds
        for answer, ids, scores in zip(request.answers, drawn, logprobs, strict=True):
            for token, logprob in zip(ids.tolist(), scores.tolist(), strict=True):
                answer.push(token, logprob)
        timings.new_tokens = sum(len(answer.token_ids) for answer in request.answers)
        yield
