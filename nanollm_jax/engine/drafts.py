"""Several tokens a step: somebody guesses the next ones, the model reads all guesses at once, and those that it would have
drawn itself are kept.  Leviathan et al. 2023, arXiv:2211.17192.

The tokens behind a row's own are drafts: what the text has said before, or what a smaller model says. At each place of such
a block the model draws as it would without them, with the random number of (seed, position) and the history until there; a
draft is taken where it is what was drawn, and what stands behind the first that is not is thrown away. So nothing depends on
who guesses: an answer has the bits that it has in any engine of blocks of this length. They are not those of single tokens,
whose sums are taken in another order.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nanollm_jax import model
from nanollm_jax import sampling as smp
from nanollm_jax.cache import KVCache
from nanollm_jax.checks import whole
from nanollm_jax.devices.programs import Other
from nanollm_jax.errors import NanoLLMWarning, RequestError, shown
from nanollm_jax.layout import check_goes_back
from nanollm_jax.loading import Model
from nanollm_jax.sampling import History

if TYPE_CHECKING:
    from nanollm_jax.engine.slots import State

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
        check_tokens(self.tokens)

    def propose(self, other: Other | None, state: State, goes: jax.Array) -> Proposal:
        """What may follow the token of each row.  goes [B]"""
        return *self.guess(state.asked.history), state.draft

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


@dataclass(frozen=True)
class DraftModel:
    """Guesses so many tokens a step with a smaller model of the same vocabulary, which reads every prompt too.

    It draws with the settings and the random number of each place, as the model itself will: the two agree often where their
    distributions are near. tokens is 1 to MOST. Raises RequestError for another number, and for what is no model.
    """

    model: Model
    tokens: int = 4

    def __post_init__(self) -> None:
        """Look at both."""
        if not isinstance(self.model, Model):
            raise RequestError(f"a DraftModel of {shown(self.model)}; expected a model, as nanollm_jax.load gives it.")
        check_tokens(self.tokens)

    def __str__(self) -> str:
        return f"DraftModel({self.model.num_parameters:,} parameters, tokens={self.tokens})"


@dataclass(frozen=True)
class Drafter:
    """A DraftModel as a program knows it: its parameters come beside."""

    tokens: int

    def propose(self, other: Other | None, state: State, goes: jax.Array) -> Proposal:
        """What the other model draws behind the token of each row that goes on [B], one after the other.

        Penalties are those of the text until now. The last draft is run as well: where all are right its key is needed.
        """
        assert other is not None and state.draft is not None
        asked, params, config = state.asked, other.params, other.config
        V = asked.history.prompt.shape[1]

        def one(carry: tuple[jax.Array, KVCache], __: None) -> tuple[tuple[jax.Array, KVCache], jax.Array]:
            token, cache = carry
            x, cache = model.hidden_states(params, token[:, None], 1 * goes, cache, config=config)
            logits = model.logits(params, x, config)[:, 0, :V]
            logits = jnp.pad(logits, ((0, 0), (0, V - logits.shape[1])), constant_values=jnp.finfo(jnp.float32).min)
            token, _ = smp.draw(logits, asked.sampling, asked.history, asked.seed, cache.length)
            return (token, cache), token

        cache = dataclasses.replace(state.draft, length=state.cache.length)
        (_, cache), ids = jax.lax.scan(one, (state.token, cache), length=self.tokens + 1)
        return ids[:-1].T, goes, cache


Speculate = Lookup | DraftModel | None
# ids [B k], whether there are any at all [B], the drafter's cache
Proposal = tuple[jax.Array, jax.Array, KVCache | None]


def check_tokens(tokens: Any) -> None:
    """Raise RequestError for another number of drafts than a step can have."""
    count = whole(tokens)
    if count is None or not 1 <= count <= MOST:
        raise RequestError(f"{shown(tokens)} tokens are to be guessed a step; expected 1 to {MOST}.")


def check_draft(ours: Model, draft: Model) -> None:
    """Raise RequestError where a draft's tokens are others than ours, or it is on another mesh. Warns of fewer positions."""
    if draft.mesh != ours.mesh:
        raise RequestError("the draft model is on other devices; load it with mesh=model.mesh.")
    both = ours.tokenizer, draft.tokenizer
    if (both[0] is None) != (both[1] is None) or (
        both[0] is None and draft.config.vocab_size != ours.config.vocab_size
    ):
        raise RequestError(
            "the draft model has another vocabulary, or no tokenizer where the model has one; take another."
        )
    if both[0] is not None and both[1] is not None:
        size = max(both[0].vocab_size, both[1].vocab_size)
        other = next((n for n in range(size) if piece_of(both[0], n) != piece_of(both[1], n)), None)
        if other is not None:
            raise RequestError(
                f"the draft model has other tokens: {other} is {piece_of(both[1], other)!r}, the model's is "
                f"{piece_of(both[0], other)!r}; take one with the same tokenizer."
            )
    if draft.config.max_positions < ours.config.max_positions:
        warnings.warn(
            f"the draft model has {draft.config.max_positions} positions, the model {ours.config.max_positions}: behind them "
            "nothing that it guesses will be right.",
            NanoLLMWarning,
            stacklevel=4,
        )


def piece_of(tokenizer: Any, token: int) -> tuple[str, bytes] | None:
    """How a token is spelled, and its bytes; None where there is none of this id."""
    return (tokenizer.piece(token), tokenizer.token_bytes(token)) if token < tokenizer.vocab_size else None


def program_of(speculate: Speculate) -> Lookup | Drafter | None:
    """How the compiled step is told of it."""
    return Drafter(speculate.tokens) if isinstance(speculate, DraftModel) else speculate


def other_of(speculate: Speculate, ours: Model) -> Other | None:
    """The parameters beside the model's own that it needs. Raises as check_draft and check_goes_back do."""
    if speculate is not None:
        check_goes_back(ours.config)
    if not isinstance(speculate, DraftModel):
        return None
    check_draft(ours, speculate.model)
    check_goes_back(speculate.model.config)
    return Other(speculate.model.params, speculate.model.config)


def speculation(value: Any) -> Speculate:
    """What is asked for: a Lookup, "lookup" or "lookup:N" for one, a DraftModel, or None. Raises RequestError otherwise."""
    if value is None or isinstance(value, Lookup | DraftModel):
        return value
    kind, _, count = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind != "lookup" or not ((count.isascii() and count.isdecimal()) or value == kind):
        raise RequestError(f"speculate is {shown(value)}; expected lookup:N, such as lookup:4, or a DraftModel.")
    return Lookup(int(count)) if count else Lookup()


def spare(speculate: Speculate | Drafter) -> int:
    """How many tokens of a step may be thrown away."""
    return 0 if speculate is None else speculate.tokens
