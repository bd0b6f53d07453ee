"""What somebody asks for, made into one request a row: every argument is honoured, or refused with an error that names it."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nanollm_jax.checks import check_counts, listed, whole
from nanollm_jax.engine.answer import Answer
from nanollm_jax.engine.draws import TOPS
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.grammar import Grammar, Words
from nanollm_jax.loading import Model
from nanollm_jax.settings import Sampling, spread, token_id

MOST = 2**20  # answers of one call: each is known from the beginning


@dataclass(frozen=True)
class Request:
    """One row as it is asked for.

    ids             the prompt, at least one
    max_new_tokens  how many tokens the answer may have
    sampling        the settings of this row alone: every field one value
    seed            0 to 2**32 - 1
    ends            ids that end the answer
    stop            texts that end it
    top_logprobs    how many of the best tokens are wanted beside each
    streamed        somebody waits for every piece of it
    root            in which world its prompt is read: what is read otherwise shares no prefix with it
    shown           special tokens that the answer's text has by their names, behind SHOWN, where it has none otherwise
    grammar         the form that the answer has to have, None where it is free
    adapter         the number of the adapter that its row takes, 0 for none (Model.adapter)
    given           no answer is wanted, but how likely each of the ids is, from this one on; None where an answer is
    pooling         no answer is wanted, but the text as a vector: "mean" is the sum of its states, which is to be divided,
                    "last" the last of them, "labels" the logits of two tokens behind it
    labels          these two tokens
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    seed: int = 0
    ends: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    streamed: bool = False
    root: Hashable = None
    shown: tuple[int, ...] = ()
    grammar: Grammar | None = None
    adapter: int = 0
    given: int | None = None
    pooling: str = ""
    labels: tuple[int, int] = (0, 0)

    @property
    def answered(self) -> bool:
        """Is an answer wanted?"""
        return self.given is None and not self.pooling

    @property
    def text(self) -> tuple[int, ...]:
        """What has to be read: the prompt; of a text that is scored all but the last token, which is only predicted."""
        return self.ids if self.given is None else self.ids[:-1]

    def answer(self, model: Model) -> Answer:
        """The empty answer to it."""
        form = None if self.grammar is None else words_of(model).compile(self.grammar, tried=True).start(self.ends)
        return Answer(
            list(self.ids), model.tokenizer, eos_ids=self.ends, stop=self.stop, max_new_tokens=self.max_new_tokens,
            shown=self.shown, matcher=form,
        )  # fmt: skip

    def rows(self, vocab_size: int) -> Sampling:
        """Its settings as arrays of one row."""
        return self.sampling.rows(1, vocab_size, ends=self.ends, max_new_tokens=self.max_new_tokens)


def requests_of(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Any,
    sampling: Any,
    seed: Any,
    stop: Any,
    stop_ids: Any,
    *,
    grammar: Any = None,
    adapter: Any = None,
    top_logprobs: Any = 0,
    n: Any = 1,
    chat: bool = False,
    streamed: bool = False,
) -> list[Request]:
    """One request for each of n answers to each prompt, in order. Raises RequestError for what cannot be honoured.

    Each argument is one for all prompts, or a list of one per prompt. The i-th of n answers is drawn with seed + i; seed None
    is a fresh one for each. chat: the tokenizer's EOS, which ends a turn, ends the answer too, and so does what ends a message
    in the form of calls that the chat template tells of.
    """
    (n,) = check_counts(n=n)
    if n * len(prompts) > MOST:
        raise RequestError(f"n is {n} of {len(prompts):,} prompts; expected at most {MOST:,} answers in one call.")
    tops = check_tops(top_logprobs)
    counts = [check_counts(max_new_tokens=value)[0] for value in spread("max_new_tokens", max_new_tokens, len(prompts))]
    settings = settings_of(model, sampling, len(prompts))
    seeds = check_seeds(seed, len(prompts))
    nested = lambda value: any(listed(one) is not None for one in listed(value) or ())  # noqa: E731
    stops = spread("stop", stop, len(prompts)) if nested(stop) else [stop] * len(prompts)
    stop_ids = spread("stop_ids", stop_ids, len(prompts)) if nested(stop_ids) else [stop_ids] * len(prompts)
    turn: set[int] = set()
    if chat and model.tokenizer is not None:
        turn |= set() if model.tokenizer.eos_id is None else {model.tokenizer.eos_id}
        turn |= set() if model.chat_template is None else model.chat_template.ends
    looked_at: dict[Any, Any] = {}  # what is the same for many rows is looked at once
    grammars = spread("grammar", grammar, len(prompts))
    adapters = [model.adapter(name) for name in spread("adapter", adapter, len(prompts))]
    requests = []
    for ids, new, one, first, form, own, *ends in zip(
        prompts, counts, settings, seeds, grammars, adapters, stops, stop_ids, strict=True
    ):
        check_room(model, len(ids), new)
        texts, end_ids = once(looked_at, ("stops", *map(repr, ends)), partial(check_stops, model, *ends))
        named = {*model.defaults.eos_ids, *end_ids, *turn}
        end_ids = tuple(sorted(token for token in named if token < model.config.vocab_size))  # no other is ever drawn
        request = Request(tuple(ids), new, one, first, end_ids, texts, tops, streamed, grammar=form, adapter=own)
        if form is not None:
            once(looked_at, ("grammar", repr(form), end_ids, id(one)), partial(check_grammar, model, request))
        once(looked_at, (id(one), end_ids, new), partial(request.rows, model.config.vocab_size))
        requests += [dataclasses.replace(request, seed=(first + i) % 2**32) for i in range(n)]
    return requests


def words_of(model: Model) -> Words:
    """What compiles grammars for a model, made when it is first needed. Raises GrammarError for one without a tokenizer."""
    if "words" not in model.grammars:
        model.grammars["words"] = Words(model.tokenizer, model.config.vocab_size)
    words: Words = model.grammars["words"]
    return words


def check_grammar(model: Model, request: Request) -> None:
    """Raise GrammarError for a grammar that cannot be followed, RequestError where answers would end before it."""
    words_of(model).compile(request.grammar).start(request.ends)
    if request.sampling.forced_eos_token_id is not None:
        raise RequestError("forced_eos_token_id beside a grammar would end an answer that is not whole; leave one out.")


def check_tops(value: Any) -> int:
    """How many of the best tokens are wanted beside each. Raises RequestError for more than TOPS."""
    tops = whole(value)
    if tops is None or not 0 <= tops <= TOPS:
        raise RequestError(f"top_logprobs is {shown(value)}; expected a whole number from 0 to {TOPS}.")
    return tops


def longest(requests: Sequence[Request]) -> int:
    """How many positions the longest of these needs, with its answer."""
    return max((len(request.text) + request.max_new_tokens for request in requests), default=1)


def once(known: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """What was made for this key, made now if it was not."""
    if key not in known:
        known[key] = make()
    return known[key]


def settings_of(model: Model, sampling: Any, count: int) -> list[Sampling]:
    """Sampling, one for all prompts, whose fields may have one value per prompt; or a list of them -> one per prompt."""
    given = listed(sampling)
    settings = [sampling] if given is None else given
    settings = [model.defaults.sampling if one is None else one for one in settings]
    for one in settings:
        if not isinstance(one, Sampling):
            raise RequestError(f"sampling is {type(one).__name__}; expected a nanollm_jax.Sampling.")
    if given is None:
        return settings[0].split(count)
    if len(settings) != count:
        raise RequestError(f"sampling has {len(settings)} entries for {count} prompts; give one, or one per prompt.")
    return [one.split(1)[0] for one in settings]


def check_room(model: Model, prompt: int, new: int) -> None:
    """Raise RequestError where a prompt and its answer are longer than the model's positions."""
    limit = model.config.max_positions
    if prompt + new > limit:
        room, left = limit - new, limit - prompt
        offer = f"shorten it to {room} tokens or fewer" if room > 0 else "shorten it"
        offer += f", or ask for {left} new tokens or fewer" if left > 0 else "" if room > 0 else ", and ask for fewer"
        raise RequestError(
            f"a prompt of {prompt} tokens + {new} new tokens is more than the model's {limit} positions; {offer}."
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


def check_seeds(seed: Any, count: int) -> list[int]:
    """One number, one per prompt, or None for fresh ones -> one per prompt."""
    seeds = [secrets.randbits(32) for _ in range(count)] if seed is None else spread("seed", seed, count)
    numbers = [whole(value) for value in seeds]
    for value, number in zip(seeds, numbers, strict=True):
        if number is None or not 0 <= number < 2**32:
            raise RequestError(f"seed is {shown(value)}; expected a whole number from 0 to 2**32 - 1.")
    return [number for number in numbers if number is not None]


def encode_prompts(model: Model, prompts: Any) -> tuple[list[list[int]], bool]:
    """Every shape of prompts -> lists of ids, and whether it was a single one. Raises RequestError for what is none."""
    if not isinstance(model, Model):
        raise RequestError(
            f"the first argument is {type(model).__name__}; expected a model, as nanollm_jax.load gives it."
        )
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
