"""Several tokens a step: somebody guesses the next ones, the model reads all guesses at once, and those that it would have
drawn itself are kept.  Leviathan et al. 2023, arXiv:2211.17192.

The tokens behind a row's own are drafts. At each place of such a block the model draws as it would without them, with the
random number of (seed, position) and the history until there; a draft is taken where it is what was drawn, and what stands
behind the first that is not is thrown away. So nothing depends on who guesses: an answer has the bits that it has in any
engine of blocks of this length. They are not those of single tokens, whose sums are taken in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax.checks import whole
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.sampling import History

RUN = 3  # ids that are looked for in the text, at most
MOST = 15  # drafts of a step: a block is never as long as a piece of a prompt


@dataclass(frozen=True)
class Lookup:
    """Guesses so many tokens a step out of the text itself: what came when it last had the ids that it has at its end now.

    tokens is 1 to MOST. For answers that repeat what was said: edits, summaries with quotes, code.
    Saxena 2023, "Prompt Lookup Decoding". Raises RequestError for another number.
    """

    tokens: int = 4

    def __post_init__(self) -> None:
        """Look at the number."""
        count = whole(self.tokens)
        if count is None or not 1 <= count <= MOST:
            raise RequestError(f"{shown(self.tokens)} tokens are to be guessed a step; expected 1 to {MOST}.")

    def guess(self, past: History) -> tuple[jax.Array, jax.Array]:
        """What may come next in each row.  -> ids [B k], and whether there is a guess at all [B]"""
        return look_up(past.text, past.length, self.tokens)


def look_up(text: jax.Array, length: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """What followed the last ids of each text when it last had them.  text [B P], length [B] -> ids [B k], found [B]

    Of all places before its end, that with the longest run of up to RUN ids in common with the end, the last of these. What
    would come from behind the end is that place's again: a text that goes round in circles goes on so.
    4 ids behind  a b c d a b c : d a b c.  4 ids behind  a b a b : a b a b.
    """
    B, P = text.shape
    place = jnp.arange(P)[None]
    same, run = (place > 0) & (place < length[:, None]), jnp.zeros((B, P), jnp.int32)
    for back in range(1, RUN + 1):  # run[b, p]: how many ids before place p are those before the end
        last = jnp.take_along_axis(text, jnp.maximum(length[:, None] - back, 0), axis=1)
        same &= (place >= back) & (jnp.roll(text, back, axis=1) == last)
        run += same
    longest = jnp.max(run, axis=1)
    begin = jnp.max(jnp.where(run == longest[:, None], place, 0), axis=1)
    circle = jnp.maximum(length - begin, 1)
    ids = jnp.take_along_axis(text, begin[:, None] + jnp.arange(count)[None] % circle[:, None], axis=1)
    return ids, longest > 0


def speculation(value: Any) -> Lookup | None:
    """What somebody asks for: a Lookup, "lookup" or "lookup:N" for one, or None. Raises RequestError for anything else."""
    if value is None or isinstance(value, Lookup):
        return value
    kind, _, count = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind != "lookup" or not (count.isdecimal() or value == kind):
        raise RequestError(f"speculate is {shown(value)}; expected lookup:N, such as lookup:4, or nothing.")
    return Lookup(int(count)) if count else Lookup()


def spare(speculate: Lookup | None) -> int:
    """How many tokens of a step may be thrown away."""
    return 0 if speculate is None else speculate.tokens
