"""Where a difference between two texts is kept: values of one are put into the pass over the other, place by place.

Meng et al. 2022, arXiv:2202.05262 (causal tracing); by gradient: Nanda 2023, "Attribution Patching".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.glass import passes
from nanollm_jax.glass.passes import Target
from nanollm_jax.glass.texts import of_each, same_length, text_of
from nanollm_jax.loading import Model
from nanollm_jax.params import Params


@dataclass(frozen=True, repr=False)
class Patching:
    """What is measured of the corrupted text with one piece of the clean one in it.

    values  [P X], of P places and X positions or heads; an estimate of each where it is by gradient
    clean, corrupted   what is measured of the two texts as they are
    pieces  texts of the clean one's tokens
    """

    values: np.ndarray
    clean: float
    corrupted: float
    places: list[str]
    pieces: list[str]
    said: str

    @property
    def recovered(self) -> np.ndarray:
        """How much of the difference each piece brings back: 0 nothing, 1 all of it.  [P X]"""
        return (self.values - self.corrupted) / (self.clean - self.corrupted)

    def __repr__(self) -> str:
        place, where = np.unravel_index(np.argmax(np.abs(self.values - self.corrupted)), self.values.shape)
        return (
            f"Patching({self.said}: clean {self.clean:.2f}, corrupted {self.corrupted:.2f}; {self.places[place]} at {where} "
            f"gives {self.values[place, where]:.2f})"
        )


@of_each("clean", "corrupted")
def patch(
    model: Model,
    clean: Any,
    corrupted: Any,
    *,
    token: Any = None,
    against: Any = None,
    at: int = -1,
    places: str | Iterable[str] = "layers.*.out",
    over: str = "T",
    approximate: bool = False,
) -> Patching:
    """What is measured of a corrupted text when values of a clean one are put into it, one place and position at a time.

    clean, corrupted     two texts, or lists of ids, of as many tokens
    token, against, at   what is measured: the log-probability of a token behind position `at`; or, with against, how far its
                         logit is above that one's. token None is the clean text's next one
    places       patterns of names whose values are put in: the stream behind layers, "layers.*.attention.mixed" ..
    over         along which of their axes, one at a time: "T" positions, "N" heads (of q and mixed, at all positions at once),
                 "K" heads of keys and values
    approximate  estimate all of them from one gradient, which is right where the model is straight between the two texts
    Of several clean texts a list; corrupted, token, against and at may have an entry for each then.
    Raises RequestError naming what cannot be honoured.
    """
    good, bad = text_of(model, clean), text_of(model, corrupted)
    same_length(good, bad, "corrupted")
    if good.ids == bad.ids:
        raise RequestError("clean and corrupted are the same tokens; expected two texts that differ.")
    target, right = passes.aim(good, token, against, at)
    other = None if target.against < 0 else int(target.against)
    wrong = passes.aim(bad, int(target.token), other, at)[1]
    names = passes.places_of(model, places)
    axes = {name: letters.index(over) if over in letters[1:] else None for name, letters in names.items()}
    for name, axis in axes.items():
        if axis is None or "S" in names[name]:
            raise RequestError(
                f"{name} has axes {' '.join(names[name])}, and over is {shown(over)}; expected values with that axis, and "
                "without S."
            )
    keep = tuple((name, None) for name in names)
    tokens, count = bad.padded
    values = passes.run_pass(passes.keep_values, model, *good.padded, keep=keep)
    X = len(good.ids) if over == "T" else good.config.sizes[over]
    how = {"axes": tuple(axes.items())}
    if approximate:
        found = passes.fetched(passes.run_pass(estimate, model, tokens, count, target, values, **how))[:, :X] + wrong
    else:
        place, where = (index.ravel().astype(np.int32) for index in np.indices((len(names), X)))
        found = passes.in_rows(
            lambda *index: passes.run_pass(measure_patched, model, tokens, count, target, values, *index, **how),
            (place, where),
            tokens.shape[1],
            model.dp,
        ).reshape(len(names), X)
    return Patching(found, right, wrong, list(names), good.pieces, passes.said(good, target))


def measure_patched(
    params: Params, tokens: jax.Array, count: jax.Array, target: Target, values: dict[str, jax.Array],
    place: jax.Array, where: jax.Array, *, config: ModelConfig, mesh: Mesh | None, kept: str, axes: tuple[tuple[str, int], ...],
) -> jax.Array:  # fmt: skip
    """What is measured of rows with one piece each.  tokens [1 T], count [1], place and where [B] -> [B] float32"""
    B, change = place.shape[0], {}
    for index, (name, axis) in enumerate(axes):
        value = values[name]
        mask = (place == index)[:, None] & (where[:, None] == jnp.arange(value.shape[axis])[None])  # [B X]
        shape = [B, *(size if at == axis else 1 for at, size in enumerate(value.shape[1:], 1))]
        change[name] = (passes.replace, (mask.reshape(shape), value))
    return passes.read_rows(params, tokens, count, target, B, change, config, mesh, kept)


def estimate(
    params: Params, tokens: jax.Array, count: jax.Array, target: Target, values: dict[str, jax.Array],
    *, config: ModelConfig, mesh: Mesh | None, kept: str, axes: tuple[tuple[str, int], ...],
) -> jax.Array:  # fmt: skip
    """How much each piece would change, by the gradient where nothing is put in.  tokens [1 T], count [1] -> [P X] float32"""
    own = passes.keep_values(
        params, tokens, count, config=config, mesh=mesh, kept=kept, keep=tuple((name, None) for name, _ in axes)
    )

    def measured(added: dict[str, jax.Array]) -> jax.Array:
        change = {name: (lambda value, seen, x: value + x, x) for name, x in added.items()}
        return passes.read_rows(params, tokens, count, target, 1, change, config, mesh, kept)[0]

    slopes = jax.grad(measured)(jax.tree.map(jnp.zeros_like, own))
    rows = []
    for name, axis in axes:
        change = (slopes[name] * (values[name] - own[name])).astype(jnp.float32)
        rows.append(jnp.sum(change, axis=[at for at in range(change.ndim) if at != axis]))
    return jnp.stack(rows)
