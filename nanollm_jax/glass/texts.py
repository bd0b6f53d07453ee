"""Which texts a tool looks at: one or several, or rows of a box; and their tokens, by id or by what they spell."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import numpy as np

from nanollm_jax.checks import listed, whole
from nanollm_jax.config import ModelConfig
from nanollm_jax.engine import buckets
from nanollm_jax.engine.request import check_room, encode_prompts
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass.watch import Watched
from nanollm_jax.loading import Model
from nanollm_jax.settings import token_id

Source = Model | Watched
Asked = ParamSpec("Asked")


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
    def config(self) -> ModelConfig:
        """The model's own, without what a mesh makes up."""
        return own_config(self.model)

    @property
    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Its tokens [1 T], as many as a program is compiled for, and how many are real [1]."""
        tokens = np.zeros((1, buckets.text(len(self.ids), self.model.config.max_positions)), np.int32)
        tokens[0, : len(self.ids)] = self.ids
        return tokens, np.array([len(self.ids)], np.int32)


def own_config(model: Model) -> ModelConfig:
    """A model's config without what a mesh makes up. Raises RequestError where not all layers have as many query heads: tools
    count [L N] of them.
    """
    config = model.unpadded or model.config
    counts: dict[int, list[str]] = {}
    for layer, where in config.alike():
        if layer.attends:
            counts.setdefault(config.heads_of(layer).num_heads, []).append(where)
    if len(counts) > 1:
        said = ", ".join(f"{heads} in layers {' '.join(where)}" for heads, where in counts.items())
        raise RequestError(
            f"query heads are {said}: these tools count the same number of them in every layer. watch and observe work with it."
        )
    return config


def of_each(*texts: str) -> Callable[[Callable[Asked, Any]], Callable[Asked, Any]]:
    """A decorator: a tool of one text takes several, and rows of a box, one after the other with the same programs.

    texts are the names of the arguments that are texts. Where the first is several, or row is, a list of what the tool gives
    comes back, and any argument that is a list has an entry for each; other texts may be one for all.
    """

    def decorate(tool: Callable[Asked, Any]) -> Callable[Asked, Any]:
        names = inspect.signature(tool)

        @wraps(tool)
        def each(*args: Asked.args, **how: Asked.kwargs) -> Any:
            given = names.bind(*args, **how).arguments
            first = next((name for name in (texts[0], "row") if several(name, given.get(name), texts)), None)
            if first is None:
                return tool(*args, **how)
            count = len(listed(given[first]) or ())
            lists = {name: listed(value) for name, value in given.items() if several(name, value, texts)}
            for name, values in lists.items():
                if len(values or ()) != count:
                    raise RequestError(
                        f"{name} has {len(values or ())} entries, and {first} {count}; give one, or one for each."
                    )
            return [tool(**given | {name: values[n] for name, values in lists.items()}) for n in range(count)]  # type: ignore[index,call-arg]

        return each

    return decorate


def several(name: str, value: Any, texts: tuple[str, ...]) -> bool:
    """Has an argument an entry for each of several texts?"""
    found = listed(value)
    if name not in texts:
        return found is not None and name in ("token", "against", "at", "row")
    return bool(found) and all(isinstance(one, str) or listed(one) is not None for one in found or ())


def text_of(source: Source, text: Any, row: int = 0) -> Text:
    """The text to look at: one text or its ids and the model, or a row of a box. Raises RequestError for what is neither."""
    if isinstance(source, Watched):
        check_box(source, text, row)
        if source.programs.requests[source.tickets[row].number].changes:
            raise RequestError(
                f"row {row} of this box was changed while it was written, and this tool makes a plain pass of its own; "
                "watch it without change, or give the model and a text."
            )
        return Text(model_of(source, row), source.tokens[row])
    if not isinstance(source, Model):
        raise RequestError(
            f"the first argument is {type(source).__name__}; expected a model, or a box that watch gave."
        )
    ids, single = encode_prompts(source, text)
    if not single:
        raise RequestError(f"text is {shown(text)}; expected one text, or a list of its ids: call this for each.")
    check_room(source, len(ids[0]), 0)
    return Text(source, ids[0])


def check_box(box: Watched, text: Any, row: int) -> None:
    """Raise RequestError unless a box has such a row, and nobody gave it another text."""
    if text is not None:
        raise RequestError(
            f"a box has its texts already, and {shown(text)} is one more; name what comes behind it (row=, token= ..), or "
            "give the model in place of the box."
        )
    if whole(row) is None or not 0 <= row < len(box.tickets):
        raise RequestError(f"row is {shown(row)}; expected one from 0 to {len(box.tickets) - 1}.")


def adapter_of(box: Watched, row: int) -> str | None:
    """The name of the adapter that a row was written with, None for none."""
    number = box.tickets[row].request.adapter
    return box.model.adapters[number - 1] if number else None


def model_of(box: Watched, row: int) -> Model:
    """The model that wrote a row."""
    return with_adapter(box.model, adapter_of(box, row))


def with_adapter(model: Model, name: str | None) -> Model:
    """A model with one of its adapters, or none, in every row of whatever is computed with it."""
    return model if name is None and not model.adapters else model.adapted(name)


def pieces_of(model: Model, ids: Iterable[int]) -> list[str]:
    """The text of each token; its number where the checkpoint has no tokenizer."""
    return [word_of(model, token) for token in ids]


def word_of(model: Model, token: int) -> str:
    """What a token prints, or its name where it prints nothing that can be read."""
    if model.tokenizer is None:
        return f"{token}"
    return model.tokenizer.token_bytes(token).decode("utf-8", "replace") or model.tokenizer.piece(token) or f"{token}"


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
