"""A direction that stands for a difference between texts, added while the model writes.

Turner et al. 2023, arXiv:2308.10248 (activation addition); Rimsky et al. 2023, arXiv:2312.06681 (the mean over pairs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.checks import listed, real
from nanollm_jax.engine.request import encode_prompts
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass import passes
from nanollm_jax.glass.edits import Change
from nanollm_jax.glass.texts import text_of
from nanollm_jax.loading import Model


@dataclass(frozen=True, repr=False)
class Steering:
    """A direction at a place of the model: its name, and the vector [D] float32."""

    place: str
    vector: np.ndarray

    def change(self, strength: float = 1.0) -> dict[str, Change]:
        """What watch takes as `change`: strength times the vector is added. Another strength compiles nothing.

        nano.watch(model, prompt, change=steering.change(4.0), since="answer")
        """
        number = real(strength)
        if number is None or not np.isfinite(number):
            raise RequestError(f"strength is {shown(strength)}; expected a finite number.")
        return {self.place: (add, np.float32(number) * self.vector)}

    def __repr__(self) -> str:
        return f"Steering({self.place}, a vector of length {np.linalg.norm(self.vector):.2f})"


def add(value: jax.Array, seen: Mapping[str, jax.Array], vector: jax.Array) -> jax.Array:
    """The edit.  value [B T D], vector [B D]"""
    return value + vector[:, None].astype(value.dtype)


def steer(model: Model, pairs: Sequence[tuple[Any, Any]], place: str) -> Steering:
    """The mean difference between texts at a place, which points from the second of each pair to the first.

    pairs  (a text with it, a text without), or their ids; each is looked at behind its last token
    place  one name with axes [B T D], such as "layers.2.out"
    Raises RequestError for what is no pair and for a place that is no vector.
    """
    names = passes.places_of(model, place)
    if len(names) != 1 or [*names.values()] != [["B", "T", "D"]]:
        raise RequestError(f"place is {shown(place)}; expected one name with axes B T D, such as layers.2.out.")
    (name,) = names
    return Steering(name, differences(model, pairs, [name])[name])


def differences(model: Model, pairs: Sequence[tuple[Any, Any]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean difference between the texts of pairs at each of some places, {name: [D] float32}. Raises as steer."""
    given = listed(pairs)
    if not given or any(listed(pair) is None or len(listed(pair) or ()) != 2 for pair in given):
        raise RequestError(f"pairs is {shown(pairs)}; expected a list of pairs (a text with it, a text without).")
    rows = [encode_prompts(model, list(pair)) for pair in given]
    if any(single for _, single in rows):
        raise RequestError(f"pairs is {shown(pairs)}; expected pairs of texts, or of lists of ids.")
    texts = [text_of(model, ids) for pair, _ in rows for ids in pair]
    longest = max(texts, key=lambda text: len(text.ids))
    tokens = np.zeros((len(texts), longest.padded[0].shape[1]), np.int32)
    count = np.array([len(text.ids) for text in texts], np.int32)
    for n, text in enumerate(texts):
        tokens[n, : len(text.ids)] = text.ids
    keep = tuple((name, at_last) for name in names)
    vectors = passes.in_rows(
        lambda *arrays: passes.run_pass(passes.keep_values, model, *arrays, keep=keep),
        (tokens, count),
        tokens.shape[1],
        model.dp,
    )
    return {name: (x[0::2].astype(np.float32) - x[1::2].astype(np.float32)).mean(0) for name, x in vectors.items()}


def at_last(value: jax.Array, seen: Mapping[str, jax.Array]) -> jax.Array:
    """The vectors of each row's last real token.  [B T D] -> [B D]"""
    return jnp.take_along_axis(value, seen["real"][:, None, None] - 1, axis=1)[:, 0]
