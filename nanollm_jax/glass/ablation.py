"""What is lost without a head, an MLP or a layer: each is taken out in a row of its own of one compiled program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass import passes
from nanollm_jax.glass.names import check_attends
from nanollm_jax.glass.passes import Target
from nanollm_jax.glass.texts import Source, Text, of_each, same_length, text_of
from nanollm_jax.params import Params

# part -> the values of a layer in which it is replaced
PARTS = {
    "heads": ("attention.mixed",),
    "attentions": ("attention.out",),
    "mlps": ("mlp.out",),
    "layers": ("attention.out", "mlp.out"),
}


@dataclass(frozen=True, repr=False)
class Ablation:
    """What is measured without each part.

    values  [L N] without each head, or [L] without each MLP, attention or layer; plain where a layer has none
    plain   with all of them
    """

    values: np.ndarray
    plain: float
    parts: str
    said: str

    @property
    def effect(self) -> np.ndarray:
        """How much each part brings: plain less the value without it, in the shape of values."""
        return self.plain - self.values

    def __repr__(self) -> str:
        most = np.unravel_index(np.argmax(np.abs(self.effect)), self.effect.shape)
        where = ", ".join(map(str, most))
        return f"Ablation({self.said}: {self.plain:.2f}, of {self.parts} [{where}] brings {self.effect[most]:+.2f})"


@of_each("text", "instead")
def ablate(
    source: Source,
    text: Any = None,
    parts: str = "heads",
    *,
    token: Any = None,
    against: Any = None,
    at: int = -1,
    instead: Any = "zero",
    row: int = 0,
) -> Ablation:
    """What is measured behind a token of a text without each head, MLP, attention or layer, one at a time.

    source   a model, and a text or its ids; or a box that watch gave, with a row of it
    parts    "heads", "mlps", "attentions" or "layers" (a layer's attention and MLP together)
    token, against, at   what is measured: the log-probability of a token behind position `at`; or, with against, how far its
             logit is above that one's. token None is the one that follows, behind the last one the most probable
    instead  of what the part gives, at all positions: "zero"; "mean", of what it gives over the text; or what it gives over
             another text of as many tokens
    Of several texts, or a list of rows, a list; token, against, at and instead may have an entry for each then.
    Raises RequestError naming what cannot be honoured.
    """
    if not isinstance(parts, str) or parts not in PARTS:
        raise RequestError(f"parts is {shown(parts)}; expected {', '.join(PARTS)}.")
    asked = text_of(source, text, row)
    target, plain = passes.aim(asked, token, against, at)
    config = asked.config
    if parts == "heads":
        check_attends(config, "an ablation of heads")
    other = others(asked, parts, instead)
    L, units = config.num_layers, config.num_heads if parts == "heads" else 1
    layer, unit = (index.ravel().astype(np.int32) for index in np.indices((L, units)))
    tokens, count = asked.padded
    values = passes.in_rows(
        lambda *off: passes.run_pass(measure_without, asked.model, tokens, count, target, other, *off, parts=parts),
        (layer, unit),
        tokens.shape[1],
        asked.model.dp,
    )
    shape = (L, units) if parts == "heads" else (L,)
    return Ablation(values.reshape(shape), plain, parts, passes.said(asked, target))


def others(text: Text, parts: str, instead: Any) -> dict[str, np.ndarray]:
    """What stands in the place of each value, {name: [1 T ..]} or {name: [1 1 ..]} for all positions."""
    model, config, size = text.model, text.config, len(text.ids)
    names = [
        f"layers.{index}.{value}"
        for index, layer in enumerate(config.layers)
        for value in PARTS[parts]
        if value.partition(".")[0] != layer.lacks
    ]
    if isinstance(instead, str) and instead == "zero":
        mixed = [(config.num_heads, config.widths(layer)[1]) for layer in config.layers]
        tails = mixed if parts == "heads" else [(config.hidden_size,)] * len(mixed)
        return {name: np.zeros((1, 1, *tails[int(name.split(".")[1])]), np.float32) for name in names}
    there = text if isinstance(instead, str) and instead == "mean" else text_of(model, instead)
    same_length(text, there, "instead")
    keep = tuple((name, None) for name in names)
    values = passes.fetched(passes.run_pass(passes.keep_values, model, *there.padded, keep=keep))
    if there is text:
        values = {name: value[:, :size].mean(1, keepdims=True, dtype=np.float32) for name, value in values.items()}
    return values


def measure_without(
    params: Params, tokens: jax.Array, count: jax.Array, target: Target, other: dict[str, jax.Array],
    layer: jax.Array, unit: jax.Array, *, config: ModelConfig, mesh: Mesh | None, kept: str, parts: str,
) -> jax.Array:  # fmt: skip
    """What is measured of rows that each lack one part.  tokens [1 T], count [1], layer and unit [B] -> [B] float32"""
    change = {}
    for name, value in other.items():
        off = (layer == int(name.split(".")[1]))[:, None]  # [B 1]
        if parts == "heads":
            mask = off & (unit[:, None] == jnp.arange(config.num_heads)[None])
            change[name] = (passes.replace, (mask[:, None, :, None], value))
        else:
            change[name] = (passes.replace, (off[:, :, None], value))
    return passes.read_rows(params, tokens, count, target, layer.shape[0], change, config, mesh, kept)
