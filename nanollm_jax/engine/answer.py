"""One row's answer: tokens in, text out, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from nanollm_jax.engine.timings import Timings
from nanollm_jax.errors import NumericsError
from nanollm_jax.grammar import Matcher
from nanollm_jax.tokenizer import Tokenizer

SHOWN = 200  # characters of an answer in its repr


@dataclass(frozen=True)
class Generation:
    """One answer.

    text            what was written, without the prompt, special tokens and the stop string
    token_ids       every token drawn, the one that ended it included
    logprobs        natural log-probability of each of them under the model's own distribution, before any setting
    finish_reason   "stop" (an end-of-sequence id, a stop id, a stop string, or the end of its grammar) or "length"
                    (max_new_tokens)
    prompt_tokens   how many tokens the prompt had, BOS included
    seed            with which it was drawn: the same again gives the same again
    top_logprobs    of each token the best ones beside it, as many as were asked for: (id, log-probability), the best first
    timings         what it cost
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    prompt_tokens: int
    seed: int = 0
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings, compare=False)

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}..."
        return (
            f"Generation({text!r}, {len(self.token_ids)} tokens behind {self.prompt_tokens}, "
            f"finish_reason={self.finish_reason!r}, seed={self.seed})"
        )


class Answer:
    """One row's answer while it grows."""

    def __init__(
        self,
        prompt: list[int],
        tokenizer: Tokenizer | None,
        *,
        eos_ids: tuple[int, ...],
        stop: tuple[str, ...],
        max_new_tokens: int,
        shown: Collection[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        """Nothing said yet. A prompt that prints nothing (BOS alone) begins a text; any other is continued.

        shown: special tokens whose names stand in the text, behind SHOWN; matcher: what follows its grammar, if it has one, to
        which the space before a first word is a space.
        """
        self.eos_ids = eos_ids
        self.max_new_tokens = max_new_tokens
        self.stop = stop
        self.prompt_tokens = len(prompt)
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[list[tuple[int, float]]] = []
        self.text = ""
        self.finish_reason = ""
        self.matcher = matcher
        begins = tokenizer is not None and matcher is None and not any(tokenizer.token_bytes(token) for token in prompt)
        self.decoder = None if tokenizer is None else tokenizer.decoder(start=begins, shown=shown)

    def push(self, token: int, logprob: float, tops: Sequence[tuple[int, float]] = ()) -> None:
        """Take one more token, and the best ones beside it, unless the answer has ended. Raises NumericsError where the model
        computed none, GrammarError where the answer's grammar has no room for it.
        """
        if self.finish_reason:
            return
        if math.isnan(logprob):
            raise NumericsError(f"the logits of token {len(self.token_ids)} of the answer")
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.top_logprobs.append(list(tops))
        known = len(self.text)
        if token in self.eos_ids:
            self.finish_reason = "stop"
        elif self.decoder is not None:
            self.text += self.decoder.push(token)
        if not self.finish_reason and self.matcher is not None:
            self.matcher.take(token)
            self.finish_reason = "stop" if self.matcher.over else ""
        if not self.finish_reason and len(self.token_ids) == self.max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason and self.decoder is not None:
            self.text += self.decoder.finish()
        # a stop string may have begun in the text that was known before
        found = [at for end in self.stop if (at := self.text.find(end, max(0, known - len(end) + 1))) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.finish_reason = "stop"

    def certain(self) -> int:
        """How many characters can no longer become part of a stop string."""
        if self.finish_reason:
            return len(self.text)
        held = [size for end in self.stop for size in range(1, len(end)) if self.text.endswith(end[:size])]
        return len(self.text) - max(held, default=0)

    def result(self, seed: int = 0, timings: Timings | None = None) -> Generation:
        """The answer, finished or as far as it is."""
        return Generation(  # lists of its own, which do not grow
            self.text, [*self.token_ids], [*self.logprobs], self.finish_reason, self.prompt_tokens, seed,
            [*self.top_logprobs], Timings() if timings is None else timings,
        )  # fmt: skip
