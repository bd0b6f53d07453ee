"""One pass over a text, with values inside kept and changed: what the tools of this wing are made of.

The rows of a pass are one text, each changed in its own way, so a hundred ablations are rows of a few calls of one compiled
program. Texts are padded to a few lengths; which token, head or position, and how strong, are arguments and compile nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax import model as transformer
from nanollm_jax.cache import init_cache
from nanollm_jax.checks import whole
from nanollm_jax.config import ModelConfig
from nanollm_jax.engine import buckets
from nanollm_jax.engine.request import check_room, encode_prompts
from nanollm_jax.errors import NumericsError, RequestError, shown
from nanollm_jax.glass.asking import expanded, model_names
from nanollm_jax.glass.harvest import harvest
from nanollm_jax.glass.walk import Kept
from nanollm_jax.glass.watch import Watched
from nanollm_jax.loading import Model
from nanollm_jax.params import Params
from nanollm_jax.settings import token_id

TOKENS = 4096  # of all rows of one call
STEP = 16  # in which the number of its rows grows
Source = Model | Watched


@dataclass(frozen=True)
class Text:
    """A text that tools look at, and the model that reads it."""

    model: Model
    ids: list[int]

    @property
    def pieces(self) -> list[str]:
        """The text of each token."""
        return pieces_of(self.model, self.ids)

    @property
    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Its tokens [1 T], as many as a program is compiled for, and how many are real [1]."""
        tokens = np.zeros((1, buckets.text(len(self.ids), self.model.config.max_positions)), np.int32)
        tokens[0, : len(self.ids)] = self.ids
        return tokens, np.array([len(self.ids)], np.int32)


class Target(NamedTuple):
    """What is measured: behind the token at position `at` the log-probability of `token`; or, where `against` is a token and
    not negative, how far its logit is above that one's.  [] int32 each
    """

    at: np.ndarray
    token: np.ndarray
    against: np.ndarray


def text_of(source: Source, text: Any, row: int = 0) -> Text:
    """The text to look at: one text or its ids and the model, or a row of a box. Raises RequestError for what is neither."""
    if isinstance(source, Watched):
        check_box(source, text, row)
        if source.programs.requests[source.tickets[row].number].changes:
            raise RequestError(
                f"row {row} of this box was changed while it was written, and this tool makes a plain pass of its own; "
                "watch it without change, or give the model and a text."
            )
        return Text(on_one_device(source.model), source.tokens[row])
    if not isinstance(source, Model):
        raise RequestError(
            f"the first argument is {type(source).__name__}; expected a model, or a box that watch gave."
        )
    ids, single = encode_prompts(source, text)
    if not single:
        raise RequestError(f"text is {shown(text)}; expected one text, or a list of its ids: call this for each.")
    check_room(source, len(ids[0]), 0)
    return Text(on_one_device(source), ids[0])


def check_box(box: Watched, text: Any, row: int) -> None:
    """Raise RequestError unless a box has such a row, and nobody gave it another text."""
    if text is not None:
        raise RequestError("a box has its texts already; leave text out, or give the model in place of the box.")
    if whole(row) is None or not 0 <= row < len(box.tickets):
        raise RequestError(f"row is {shown(row)}; expected one from 0 to {len(box.tickets) - 1}.")


def on_one_device(model: Model) -> Model:
    """The model. Raises RequestError for one on a mesh."""
    if model.mesh is not None:
        raise RequestError(
            f"this model is on a mesh of {dict(model.mesh.shape)}, and this tool runs on one device; load it without, or "
            "take watch, which keeps and changes the same values there."
        )
    return model


def pieces_of(model: Model, ids: Iterable[int]) -> list[str]:
    """The text of each token; its number where the checkpoint has no tokenizer."""
    return [str(token) if model.tokenizer is None else model.tokenizer.piece(token) for token in ids]


def same_length(text: Text, other: Text, what: str) -> None:
    """Raise RequestError unless two texts have as many tokens: position by position is how they are compared."""
    if len(text.ids) != len(other.ids):
        raise RequestError(
            f"{what} has {len(other.ids)} tokens {shown(other.pieces)} and the text {len(text.ids)} {shown(text.pieces)}; "
            "expected two of the same length."
        )


def token_of(model: Model, name: str, token: Any) -> int:
    """A token by its id, or by a text that is one token: " Tim". Raises RequestError for another."""
    if not isinstance(token, str) or model.tokenizer is None:
        return token_id(name, token, model.config.vocab_size)
    bare = token.removeprefix(" ")  # some tokenizers put the space before a first word themselves
    found = [model.tokenizer.encode(text, bos=False) for text in (token, bare) if text]
    for ids in found:
        data = model.tokenizer.token_bytes(ids[0]) if len(ids) == 1 else b""
        if data == token.encode() or (data == b" " + token.encode() and bare == token):
            return ids[0]
    raise RequestError(
        f"{name} is {shown(token)}, which is {shown(pieces_of(model, found[0] if found else []))}; expected one token, or its "
        "id."
    )


def places_of(model: Model, places: str | Iterable[str]) -> dict[str, list[str]]:
    """{name: axes} of the values that patterns choose, from below. Raises RequestError for a pattern that chooses none."""
    names = model_names(model)
    if not isinstance(places, str | Iterable) or not (
        patterns := dict.fromkeys([places] if isinstance(places, str) else places)
    ):
        raise RequestError(f"places is {shown(places)}; expected patterns of names, such as 'layers.*.out'.")
    return {name: names[name] for name in expanded(names, patterns)}


def read(params: Params, tokens: jax.Array, count: jax.Array, at: jax.Array, *, config: ModelConfig) -> jax.Array:
    """The logits behind one token of each row.  tokens [B T], count and at [B] -> [B V] float32"""
    B, T = tokens.shape
    cache = init_cache(config, B, T, params["embedding"]["tokens"].dtype)
    x, _ = transformer.hidden_states(params, tokens, count, cache, config=config)
    x = jnp.take_along_axis(x, at[:, None, None], axis=1)
    return transformer.logits(params, x, config)[:, 0]


def read_rows(
    params: Params,
    tokens: jax.Array,
    count: jax.Array,
    target: Target,
    rows: int,
    change: dict[str, Any],
    config: ModelConfig,
) -> jax.Array:
    """What is measured of a text in so many rows, changed as harvest has it.  tokens [1 T], count [1] -> [rows] float32"""
    same = lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:]))  # noqa: E731
    args = (params, same(tokens), same(count), same(target.at[None]))
    logits, _ = harvest(partial(read, config=config), change=change)(*args)
    return measure(logits, target)


def keep_values(
    params: Params, tokens: jax.Array, count: jax.Array, *, config: ModelConfig, keep: tuple[tuple[str, Any], ...]
) -> Kept:
    """Named values of a pass over texts, or what shrinks make of them.  tokens [B T], count [B] -> {name: [B T ..]}"""
    return harvest(partial(read, config=config), dict(keep))(params, tokens, count, count - 1)[1]


def measure(logits: jax.Array, target: Target) -> jax.Array:
    """What a target asks for.  [B V] -> [B]"""
    of = lambda x, token: jnp.take(x, token, axis=1, mode="clip")  # noqa: E731
    apart = of(logits, target.token) - of(logits, target.against)
    return jnp.where(target.against < 0, of(jax.nn.log_softmax(logits), target.token), apart)


def replace(value: jax.Array, seen: Any, arrays: tuple[jax.Array, jax.Array]) -> jax.Array:
    """An edit: what is somewhere else, where a mask says so. Both with as many axes as the value, of its length or 1."""
    mask, other = arrays
    return jnp.where(mask, other.astype(value.dtype), value)


@partial(jax.jit, static_argnames=("function", "config", "static"))
def compiled(
    params: Params,
    arrays: tuple[Any, ...],
    *,
    function: Callable[..., Any],
    config: ModelConfig,
    static: tuple[Any, ...],
) -> Any:
    """function(params, *arrays, config=config, **static), as one program."""
    return function(params, *arrays, config=config, **dict(static))


def run(function: Callable[..., Any], model: Model, *arrays: Any, **static: Any) -> Any:
    """A function of (params, *arrays, config, static) as a compiled program, which is kept."""
    return compiled(model.params, arrays, function=function, config=model.config, static=tuple(sorted(static.items())))


def in_rows(call: Callable[..., Any], arrays: tuple[np.ndarray, ...], T: int) -> Any:
    """A program of some rows of T tokens for any number of them, some after the others.  n x [..] -> n x what it gives"""
    n = len(arrays[0])
    size = buckets.power_of_two(n) if n <= STEP else -(-n // STEP) * STEP
    size = min(size, max(1, TOKENS // T))
    parts = []
    for first in range(0, n, size):
        rows = np.minimum(np.arange(first, first + size), n - 1)
        parts.append(jax.device_get(call(*(array[rows] for array in arrays))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def aim(text: Text, token: Any, against: Any, at: Any) -> tuple[Target, float]:
    """What is measured, from what a user says, and how much it is in a plain pass.

    at counts from the end where it is negative. token None is the one that follows there, behind the last one the most
    probable. Raises RequestError for what the text or the model does not have.
    """
    size, where = len(text.ids), whole(at)
    if where is None or not -size <= where < size:
        raise RequestError(f"at is {shown(at)}; expected a position of the {size} tokens, from {-size} to {size - 1}.")
    where %= size
    tokens, count = text.padded
    logits = np.asarray(run(read, text.model, tokens, count, np.array([where], np.int32)))
    if not np.isfinite(logits).all():
        raise NumericsError(f"the logits of token {where}")
    if token is None:
        token = text.ids[where + 1] if where + 1 < size else int(logits[0].argmax())
    own = token_of(text.model, "token", token)
    other = -1 if against is None else token_of(text.model, "against", against)
    if own == other:
        raise RequestError(f"token and against are both {own}; expected two, or against=None.")
    target = Target(*(np.array(number, np.int32) for number in (where, own, other)))
    return target, float(measure(jnp.asarray(logits), target)[0])


def said(text: Text, target: Target) -> str:
    """What is measured, in words."""
    own, *other = pieces_of(text.model, [int(token) for token in target[1:] if token >= 0])
    what = f"logit of {own!r} above that of {other[0]!r}" if other else f"log-probability of {own!r}"
    return f"{what} behind token {int(target.at)}"


def check_switch(model: Model, size: int, new: int) -> None:
    """Raise RequestError where a text outgrows longrope's original length while it is written: it is read otherwise then."""
    switch = model.config.switch_length
    if switch is not None and size <= switch < size + new:
        raise RequestError(
            f"{new} more tokens lead a text of {size} past longrope's original length of {switch}, beyond which all of it is "
            f"turned otherwise; ask for {switch - size} or fewer, or take a longer prompt."
        )
