"""What somebody changes in a generation, as watch takes it: heads switched off, a direction added, a vector put in its place,
and an adapter that its row takes.

All of it is arrays of one program, with nothing switched off, added and put where nobody asked for it: another head, direction,
strength or place compiles nothing, and without any the answer has the bits of a plain row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.checks import single, whole
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass import passes
from nanollm_jax.glass.edits import Change
from nanollm_jax.glass.names import check_attends
from nanollm_jax.glass.steering import differences
from nanollm_jax.glass.texts import own_config, text_of, with_adapter
from nanollm_jax.loading import Model


@dataclass(frozen=True)
class Steer:
    """strength times what one text has behind its last token and the other has not, added to the stream behind a layer.

    since: "prompt" adds it everywhere, "answer" to the tokens that were drawn.
    """

    toward: str
    away: str
    layer: int
    strength: float = 1.0
    since: str = "prompt"


@dataclass(frozen=True)
class Patch:
    """The stream behind a layer, at one position, is what it is there in another text."""

    text: str
    layer: int
    position: int


@dataclass(frozen=True)
class Edits:
    """heads are pairs (layer, head) of those that give nothing; adapter the name of one that the model was loaded with."""

    heads: tuple[tuple[int, int], ...] = ()
    steer: Steer | None = None
    patch: Patch | None = None
    adapter: str | None = None

    def check(self, model: Model) -> None:
        """Raise RequestError for what this model does not have."""
        config = own_config(model)
        check_attends(config, "what the page changes")
        model.adapter(self.adapter)
        for pair in self.heads:
            if len(pair) != 2:
                raise RequestError(f"heads has {shown(list(pair))}; expected pairs [layer, head].")
            check_below("heads: a layer", pair[0], config.num_layers)
            check_below("heads: a head", pair[1], config.num_heads)
        if self.steer is not None:
            check_below("steer.layer", self.steer.layer, config.num_layers)
            if single(self.steer.strength) is None:
                raise RequestError(
                    f"steer.strength is {shown(self.steer.strength)}; expected a finite number (in float32)."
                )
            if self.steer.since not in ("prompt", "answer"):
                raise RequestError(f"steer.since is {shown(self.steer.since)}; expected 'prompt' or 'answer'.")
            for text in (self.steer.toward, self.steer.away):
                text_of(model, text)
        if self.patch is not None:
            check_below("patch.layer", self.patch.layer, config.num_layers)
            other = len(text_of(model, self.patch.text).ids)
            check_below("patch.position", self.patch.position, other)

    def change(self, model: Model, prompt: int) -> dict[str, Change]:
        """What watch takes as `change`, of a prompt of so many tokens: the same edits whatever is asked for."""
        config, model = own_config(model), with_adapter(model, self.adapter)
        L, N, D = config.num_layers, config.num_heads, config.hidden_size
        gates = np.ones((L, N), np.float32)
        for layer, head in self.heads:
            gates[layer, head] = 0
        added, put = np.zeros((L, D), np.float32), np.zeros((L, D), np.float32)
        since, at = np.zeros(L, np.int32), np.full(L, -1, np.int32)
        if (steer := self.steer) is not None:
            names = [f"layers.{layer}.out" for layer in range(L)]
            vectors = differences(model, [(steer.toward, steer.away)], names)
            added[steer.layer] = np.float32(steer.strength) * vectors[names[steer.layer]]
            since[steer.layer] = prompt if steer.since == "answer" else 0
        if (patch := self.patch) is not None:
            put[patch.layer] = streams(model, patch.text)[patch.layer, patch.position]
            at[patch.layer] = patch.position
        changes: dict[str, Change] = {}
        for layer in range(L):
            changes[f"layers.{layer}.attention.mixed"] = (gate, gates[layer])
            changes[f"layers.{layer}.out"] = (redirect, (added[layer], since[layer], put[layer], at[layer]))
        return changes


def check_below(what: str, value: Any, limit: int) -> None:
    """Raise RequestError unless a value is one of so many."""
    number = whole(value)
    if number is None or not 0 <= number < limit:
        raise RequestError(f"{what} is {shown(value)}; expected one from 0 to {limit - 1}.")


def gate(value: jax.Array, seen: Mapping[str, jax.Array], gates: jax.Array) -> jax.Array:
    """An edit: each head as much as its gate lets through.  value [B T N H], gates [B N]"""
    return value * gates[:, None, :, None].astype(value.dtype)


def redirect(value: jax.Array, seen: Mapping[str, jax.Array], arrays: tuple[jax.Array, ...]) -> jax.Array:
    """An edit: a vector added from a position on, and another one in the place of a single position.  value [B T D]"""
    added, since, put, at = arrays  # [B D], [B], [B D], [B]
    positions = seen["positions"][:, :, None]
    begun = positions >= since[:, None, None]
    value = jnp.where(begun, value + added[:, None].astype(value.dtype), value)
    return jnp.where(positions == at[:, None, None], put[:, None].astype(value.dtype), value)


def streams(model: Model, text: str) -> np.ndarray:
    """The stream behind each layer at each token of a text.  -> [L T D] float32"""
    asked = text_of(model, text)
    names = [f"layers.{layer}.out" for layer in range(model.config.num_layers)]
    values = passes.fetched(
        passes.run_pass(passes.keep_values, model, *asked.padded, keep=tuple((name, None) for name in names))
    )
    return np.stack([values[name][0, : len(asked.ids)] for name in names]).astype(np.float32)
