"""One answer that follows a grammar: which tokens may come next, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from nanollm_jax.errors import GrammarError

if TYPE_CHECKING:
    from nanollm_jax.grammar.value import Grammar

BITS = 32  # tokens of a word of a mask


class Compiled:
    """A grammar for one vocabulary, before the first token."""

    def __init__(self, grammar: Grammar, matcher: Any, end: int, vocab_size: int) -> None:
        """matcher: llguidance's; end: its id of the end of a text, which no model has."""
        self.grammar, self.matcher, self.end, self.vocab_size = grammar, matcher, end, vocab_size

    def start(self, ends: Iterable[int]) -> Matcher:
        """Follow an answer that these ids of the model end. Raises GrammarError where it cannot even begin."""
        return Matcher(self.matcher.deep_copy(), self.end, self.vocab_size, ends)


class Matcher:
    """Follows an answer token by token.

    whole  whether the answer may end here
    over   whether it can only end here
    mask   [ceil(V/32)] uint32: bit n of word w is whether token 32 w + n may come next. Those that end an answer may where it
           is whole, and only there
    """

    def __init__(self, matcher: Any, end: int, vocab_size: int, ends: Iterable[int]) -> None:
        """matcher: a copy of its own of llguidance's."""
        self.matcher, self.end, self.size, self.ends = matcher, end, -(-vocab_size // BITS), sorted(ends)
        self.look()
        if not self.mask.any():
            raise GrammarError("grammar allows the empty text alone, and no token ends this answer; allow another.")

    def look(self) -> None:
        """See what may come next. Raises GrammarError where that cannot be told, or nothing may."""
        allowed = np.frombuffer(self.matcher.compute_bitmask(), np.uint32)
        if error := self.matcher.get_error():
            raise GrammarError(
                f"grammar cannot be followed any further: {error.partition('<non-verbose/>')[0].strip()}."
            )
        self.mask = np.zeros(self.size, np.uint32)
        shared = min(self.size, len(allowed))
        self.mask[:shared] = allowed[:shared]
        for token in (self.end, *self.ends):
            self.set(token, False)
        self.whole = self.matcher.is_accepting()
        self.over = self.whole and not self.mask.any()
        if not self.whole and not self.mask.any():
            raise GrammarError(
                "grammar cannot be followed with this model's tokens: none spells what has to come next."
            )
        for token in self.ends:
            self.set(token, self.whole)

    def set(self, token: int, allowed: bool) -> None:
        """Allow a token or forbid it. llguidance's own end may lie behind the mask."""
        word, bit = divmod(token, BITS)
        if word < self.size:
            self.mask[word] = (
                self.mask[word] | np.uint32(1 << bit) if allowed else self.mask[word] & ~np.uint32(1 << bit)
            )

    def take(self, token: int) -> None:
        """Go on with a token that was drawn. Raises GrammarError for one that may not come: all that may were forbidden."""
        word, bit = divmod(token, BITS)
        if not self.mask[word] >> np.uint32(bit) & 1 or not self.matcher.consume_token(token):
            raise GrammarError(
                f"grammar allows nothing here that the sampling settings allow too, and token {token} was drawn; relax "
                "logit_bias, no_repeat_ngram_size, begin_suppress_tokens or min_new_tokens."
            )
        self.look()
