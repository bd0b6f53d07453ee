"""How likely a text is: log-probabilities of given tokens, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanollm_jax.checks import check_counts, listed, whole
from nanollm_jax.engine.request import Request, check_ids, check_tops, encode
from nanollm_jax.engine.rows import Mark
from nanollm_jax.engine.shared import failed, submit
from nanollm_jax.errors import NumericsError, RequestError
from nanollm_jax.loading import Model
from nanollm_jax.settings import Sampling

ROWS = 8  # texts that are under way, of each part of the rows: they are read one after the other


@dataclass(frozen=True)
class Score:
    """The scored tokens of one text or continuation, in order.

    token_ids  the tokens that were scored; the first token of all, often a BOS, only has others after it
    logprobs   natural log-probability of each, given all before it that its window holds
    best       whether it was the most probable
    bytes      how many bytes of text they print
    top_logprobs   of each the best tokens in its place, as many as were asked for: (id, log-probability), the best first
    """

    token_ids: list[int]
    logprobs: list[float]
    best: list[bool]
    bytes: int
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Score({len(self.token_ids)} tokens, {self.bytes} bytes of text, logprob={self.logprob:.2f})"

    @property
    def logprob(self) -> float:
        """Natural log-probability of all of them."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """e to the mean negative log-probability per token."""
        return math.exp(min(-self.logprob / len(self.logprobs), 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Negative log-probability in bits, per byte of text; NaN for tokens that print nothing."""
        return -self.logprob / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Window:
    """A piece of a text that is read at once: tokens from `start`, of which those from `scored` on are scored."""

    row: int
    start: int
    scored: int
    end: int


def score(
    model: Model,
    texts: str | Sequence[Any],
    *,
    window: int | None = None,
    stride: int | None = None,
    rows: int | None = None,
    top_logprobs: int = 0,
    adapter: str | None = None,
) -> Score | list[Score]:
    """Log-probabilities of given texts. One text -> a Score; a list -> a list of them, in order.

    texts    each a text or a list of ids, of which all tokens but the first are scored; or a pair (context, continuation), of
             which the tokens of the continuation are. A pair of texts is encoded as one; a token across the seam is scored.
             A list of ids by itself is one text, as in generate
    window   tokens that are read at once, as many as the model has positions by default, and one more at most
    stride   tokens between the beginnings of two windows of a longer text, 1 to window - 1; default half a window. Each
             token is scored once, in the first window that has it: with at least window - stride tokens before it
    rows     of the engine that reads them, as in generate: what a text is given depends on nothing else
    top_logprobs   how many of the best tokens to give beside each, up to 20
    adapter  by its name, one of those that the model was loaded with; None is the model as it is
    The beginning of a context that was read before is not read again.  Raises RequestError naming what cannot be scored.
    """
    (window,) = check_counts(window=model.config.max_positions if window is None else window)
    stride = None if stride is None else check_counts(stride=stride)[0]
    tops, own = check_tops(top_logprobs), model.adapter(adapter)
    limit = model.config.max_positions + 1  # the last token of a window is only predicted
    if not 2 <= window <= limit:
        raise RequestError(f"window is {window}; expected 2 to {limit}, one more than the model's positions.")
    stride = max(window // 2, 1) if stride is None else stride
    if stride >= window:
        raise RequestError(
            f"stride is {stride}; expected less than the window of {window}, so that a token has others before it."
        )
    given = listed(texts)
    if isinstance(texts, str) or (given and all(whole(token) is not None for token in given)):
        return run(model, [text_to_score(model, texts if given is None else given)], window, stride, rows, tops, own)[0]
    if given is None:
        raise RequestError(f"texts is {type(texts).__name__}; expected a text, or a list of texts or pairs.")
    if isinstance(texts, tuple) and len(texts) == 2:
        raise RequestError(
            "texts is a tuple of two, which may be two texts or a pair; [a, b] is two texts, [(a, b)] one pair."
        )
    return run(model, [text_to_score(model, text) for text in given], window, stride, rows, tops, own)


def text_to_score(model: Model, text: Any) -> tuple[list[int], int]:
    """One entry -> ids, and how many of them, from the front, are not scored."""
    if isinstance(text, tuple):
        if len(text) != 2:
            raise RequestError(f"a tuple of {len(text)} cannot be scored; expected a pair (context, continuation).")
        context, continuation = text
        if isinstance(context, str) != isinstance(continuation, str):
            raise RequestError("a pair has a text and something else; expected two texts or two lists of ids.")
        if isinstance(context, str):
            before, ids = encode_any(model, context), encode_any(model, context + continuation)
            known = next(
                (n for n, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
            )
        else:
            before = check_ids(model, context)
            ids, known = before + check_ids(model, continuation), len(before)
        if known == len(ids):
            raise RequestError("a continuation has no tokens of its own; give it at least one character.")
        if known == 0:
            raise RequestError(
                "a continuation has nothing before it, and this tokenizer puts no BOS there; give it a context of one token."
            )
        return ids, known
    ids = encode_any(model, text) if isinstance(text, str) else check_ids(model, text)
    if len(ids) < 2:
        raise RequestError(f"a text of {len(ids)} tokens has none with another before it; give it at least two.")
    return ids, 1


def encode_any(model: Model, text: str) -> list[int]:
    """A text -> ids, none for one that is empty."""
    return [] if not text and model.tokenizer is not None and not model.tokenizer.add_bos else encode(model, text)


def windows_of(row: int, size: int, known: int, window: int, stride: int) -> list[Window]:
    """The windows over `size` tokens, of which the first `known` are context; each other token is scored once.

    size 10, known 1, window 4, stride 2:  0-4 scores 1 2 3, 2-6 scores 4 5, 4-8 scores 6 7, 6-10 scores 8 9.
    """
    if size <= window:
        return [Window(row, 0, known, size)]
    # windows begin at multiples of the stride; those that would score nothing are left out
    found, scored, start = [], known, 0
    while scored < size:
        end = min(start + window, size)
        if end > scored:
            found.append(Window(row, start, scored, end))
            scored = end
        start += stride
    return found


def run(
    model: Model,
    texts: list[tuple[list[int], int]],
    window: int,
    stride: int,
    rows: int | None,
    tops: int,
    adapter: int,
) -> list[Score]:
    """Score all windows of all texts, the longest first, so that the cache grows once."""
    windows = [
        found for row, (ids, known) in enumerate(texts) for found in windows_of(row, len(ids), known, window, stride)
    ]
    windows.sort(key=lambda found: found.end - found.start, reverse=True)
    requests = [
        Request(tuple(texts[one.row][0][one.start : one.end]), 0, Sampling(temperature=0.0), given=one.scored - one.start,
                top_logprobs=tops, adapter=adapter)
        for one in windows
    ]  # fmt: skip
    shared, tickets = submit(model, requests, rows, most=ROWS * model.dp)
    for _ in shared.follow(tickets):
        if (error := failed(tickets)) is not None:
            raise error
    found: list[list[Mark]] = [[] for _ in texts]
    for one, ticket in sorted(zip(windows, tickets, strict=True), key=lambda pair: pair[0].scored):
        for n, mark in enumerate(ticket.scores, one.scored):
            if not math.isfinite(mark.logprob):
                raise NumericsError(f"text {one.row}: the logits of token {n}")
        found[one.row] += ticket.scores
    return [
        Score(
            ids[known:],
            [mark.logprob for mark in marks],
            [mark.best for mark in marks],
            printed(model, ids, known),
            [mark.tops for mark in marks] if tops else [],
        )
        for (ids, known), marks in zip(texts, found, strict=True)
    ]


def printed(model: Model, ids: list[int], known: int) -> int:
    """How many bytes the tokens from `known` on print, less the space that the tokenizer puts before a first word."""
    if model.tokenizer is None:
        return 0
    before, data = (b"".join(map(model.tokenizer.token_bytes, part)) for part in (ids[:known], ids[known:]))
    put = not before and data.startswith(b" ") and not model.tokenizer.decode(ids).startswith(" ")
    return len(data) - put
