"""How the next token is to be chosen, as a user says it: every setting checked, and made into one value per row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nanollm_jax.checks import listed, real, single, whole
from nanollm_jax.errors import RequestError, shown

# name -> (what is allowed, in words; the same as a test)
ALLOWED = {
    "temperature": ("0 or more; 0 is greedy", lambda value: value >= 0),
    "top_k": ("a whole number, 0 (off) or more", lambda value: value >= 0 and value == int(value)),
    "top_p": ("above 0 and at most 1 (off)", lambda value: 0 < value <= 1),
    "min_p": ("from 0 (off) to 1", lambda value: 0 <= value <= 1),
    "typical_p": ("above 0 and at most 1 (off)", lambda value: 0 < value <= 1),
    "repetition_penalty": ("above 0; 1 is off", lambda value: value > 0),
    "presence_penalty": ("a finite number; 0 is off", lambda value: True),
    "frequency_penalty": ("a finite number; 0 is off", lambda value: True),
    "no_repeat_ngram_size": ("a whole number, 0 (off) or more", lambda value: value >= 0 and value == int(value)),
    "min_new_tokens": ("a whole number, 0 (off) or more", lambda value: value >= 0 and value == int(value)),
}
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # the settings that can do nothing at temperature 0, switched off
WHOLE = ("top_k", "no_repeat_ngram_size", "min_new_tokens")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose the next token. Each field is one value for all rows, or a sequence with one per row.

    logit_bias             token ids -> what is added to their logits (-inf forbids an id); or one such mapping per row
    begin_suppress_tokens  ids that no answer begins with; or one list of ids per row
    min_new_tokens         so many tokens are written before one that ends the answer
    no_repeat_ngram_size   no n tokens of prompt and answer come a second time in the same order; 0 is off
    forced_eos_token_id    the id that an answer of max_new_tokens ends with; None for what the model says
    Inside the compiled programs every field is an array: [B], or [B V] for what concerns single ids, where `ends` has the
    ids that end an answer and `max_new_tokens` how long it may be. So changing a setting never compiles anything.
    """

    temperature: Any = 1.0
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    repetition_penalty: Any = 1.0
    presence_penalty: Any = 0.0
    frequency_penalty: Any = 0.0
    logit_bias: Any = None
    typical_p: Any = 1.0
    no_repeat_ngram_size: Any = 0
    min_new_tokens: Any = 0
    begin_suppress_tokens: Any = ()
    forced_eos_token_id: Any = None
    ends: Any = ()
    max_new_tokens: Any = 0

    def replace(self, **changes: Any) -> Sampling:
        """The same settings but for those that are named."""
        return dataclasses.replace(self, **changes)

    def rows(self, batch: int, vocab_size: int, *, ends: Iterable[int] = (), max_new_tokens: int = 0) -> Sampling:
        """The same settings as arrays, one value per row. Raises RequestError for a value or a length that cannot be.

        ends: the ids that end an answer; max_new_tokens: of one. min_new_tokens and forced_eos_token_id ask for them.
        """
        numbers = {name: per_row(name, getattr(self, name), batch) for name in ALLOWED}
        forced = spread("forced_eos_token_id", self.forced_eos_token_id, batch)
        made = Sampling(
            **{name: np.asarray(values, np.int32 if name in WHOLE else np.float32) for name, values in numbers.items()},
            logit_bias=bias_rows(self.logit_bias, batch, vocab_size),
            begin_suppress_tokens=mask_rows("begin_suppress_tokens", self.begin_suppress_tokens, batch, vocab_size),
            forced_eos_token_id=np.asarray(
                [-1 if token is None else token_id("forced_eos_token_id", token, vocab_size) for token in forced],
                np.int32,
            ),
            ends=mask_rows("ends", tuple(ends), batch, vocab_size),
            max_new_tokens=np.full(batch, max_new_tokens, np.int32),
        )
        held = made.begin_suppress_tokens | (made.ends & (made.min_new_tokens > 0)[:, None])
        if (np.isneginf(made.logit_bias) | held).all(axis=1).any():
            raise RequestError(
                "logit_bias, begin_suppress_tokens and min_new_tokens forbid every token of the vocabulary together; "
                "leave at least one."
            )
        return made

    def split(self, batch: int) -> list[Sampling]:
        """One Sampling per row, whose every field is one value. Raises RequestError for a field of another length."""
        flat = all(whole(entry) is not None for entry in listed(self.begin_suppress_tokens) or ())
        fixed = {"ends", "max_new_tokens"} | ({"begin_suppress_tokens"} if flat else set())
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in fixed}
        per_row = {name: spread(name, value, batch) for name, value in given.items() if listed(value) is not None}
        if not per_row:
            return [self] * batch
        return [
            dataclasses.replace(self, **{name: values[row] for name, values in per_row.items()}) for row in range(batch)
        ]


def cuts_of(settings: Mapping[str, Any]) -> list[str]:
    """The settings among these that do something only where tokens are drawn."""
    return [name for name, off in OFF.items() if settings.get(name, off) != off]


def with_settings(defaults: Sampling, given: Mapping[str, Any]) -> Sampling:
    """The checkpoint's own sampling with what was given; a cut of a greedy one brings temperature 1 with it."""
    if defaults.temperature == 0 and cuts_of(given):
        given = {"temperature": 1.0} | dict(given)
    return defaults.replace(**given)


def spread(name: str, value: Any, batch: int) -> list[Any]:
    """One value for all rows, or a sequence of one per row -> one per row."""
    given = listed(value)
    values = [value] * batch if given is None else given
    if len(values) != batch:
        raise RequestError(f"{name} has {len(values)} values for {batch} prompts; give one, or one per prompt.")
    return values


def per_row(name: str, value: Any, batch: int) -> list[float]:
    """One checked number per row. What float32 does not have is refused: on the device it would be 0 or infinite."""
    found, (words, allowed) = [], ALLOWED[name]
    for given in spread(name, value, batch):
        number = single(given)
        if number is None and math.isfinite(real(given) or math.nan):
            raise RequestError(
                f"{name} is {shown(given)}; expected {words}, of the size 1.2e-38 to 3.4e38 as float32 has."
            )
        if number is None or not allowed(number):
            raise RequestError(f"{name} is {shown(given)}; expected {words}.")
        if name in WHOLE and number >= 2**31:
            raise RequestError(f"{name} is {shown(given)}; expected less than 2**31.")
        found.append(number)
    return found


def bias_rows(bias: Any, batch: int, vocab_size: int) -> np.ndarray:
    """A mapping, or one per row, or None -> [B V] float32."""
    dense = np.zeros((batch, vocab_size), np.float32)
    for row, mapping in enumerate(spread("logit_bias", bias, batch)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise RequestError(f"logit_bias is {shown(mapping)}; expected a mapping from token ids to numbers.")
        for token, value in (mapping or {}).items():
            number = real(value) if real(value) == -math.inf and whole(value) is None else single(value)
            if number is None:
                raise RequestError(
                    f"logit_bias of token {shown(token)} is {shown(value)}; expected a number that float32 has, or -inf to "
                    "forbid it."
                )
            dense[row, token_id("logit_bias", token, vocab_size)] = number
    return dense


def mask_rows(name: str, ids: Any, batch: int, vocab_size: int) -> np.ndarray:
    """Ids, or a list of them per row -> [B V] bool"""
    flat = all(whole(entry) is not None for entry in listed(ids) or ())
    mask = np.zeros((batch, vocab_size), bool)
    for row, entries in enumerate([ids] * batch if flat else spread(name, ids, batch)):
        if listed(entries) is None:
            raise RequestError(f"{name} is {shown(entries)}; expected token ids, or a list of them per prompt.")
        mask[row, [token_id(name, token, vocab_size) for token in listed(entries) or ()]] = True
    return mask


def token_id(name: str, token: Any, vocab_size: int) -> int:
    """A token's id as Python's own int. Raises RequestError for one that the model does not have."""
    found = whole(token)
    if found is None or not 0 <= found < vocab_size:
        raise RequestError(f"{name} names token {shown(token)}; ids of this model go from 0 to {vocab_size - 1}.")
    return found
