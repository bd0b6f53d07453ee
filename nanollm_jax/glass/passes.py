"""One pass over a text, with values inside kept and changed: what the tools of this wing are made of.

The rows of a pass are one text, each changed in its own way, so a hundred ablations are rows of a few calls of one compiled
program. Texts are padded to a few lengths; which token, head or position, and how strong, are arguments and compile nothing.
On a mesh the pass alone runs on its members, in parts of the rows; what is made of its results are arrays like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax import collectives
from nanollm_jax import model as transformer
from nanollm_jax.cache import init_cache
from nanollm_jax.checks import whole
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.programs import parallelize
from nanollm_jax.engine import buckets
from nanollm_jax.errors import NumericsError, RequestError, shown
from nanollm_jax.glass.asking import expanded, model_names
from nanollm_jax.glass.edits import Edit
from nanollm_jax.glass.harvest import harvest
from nanollm_jax.glass.members import rows_of
from nanollm_jax.glass.texts import Text, own_config, pieces_of, token_of
from nanollm_jax.glass.walk import Kept
from nanollm_jax.loading import Model
from nanollm_jax.params import Params
from nanollm_jax.partition import arrange

TOKENS = 4096  # of all rows of one call
STEP = 16  # in which the number of its rows grows


class Target(NamedTuple):
    """What is measured: behind the token at position `at` the log-probability of `token`; or, where `against` is a token and
    not negative, how far its logit is above that one's.  [] int32 each
    """

    at: np.ndarray
    token: np.ndarray
    against: np.ndarray


def held(config: ModelConfig, mesh: Mesh | None) -> ModelConfig:
    """A model's config as the members of a mesh hold it."""
    return config if mesh is None or config.counted_heads is not None else arrange(config, mesh.shape["tp"])


def places_of(model: Model, places: str | Iterable[str]) -> dict[str, list[str]]:
    """{name: axes} of the values that patterns choose, from below. Raises RequestError for a pattern that chooses none."""
    names = model_names(model)
    if not isinstance(places, str | Iterable) or not (
        patterns := dict.fromkeys([places] if isinstance(places, str) else places)
    ):
        raise RequestError(f"places is {shown(places)}; expected patterns of names, such as 'layers.*.out'.")
    return {name: names[name] for name in expanded(names, patterns)}


def read(
    params: Params, tokens: jax.Array, count: jax.Array, at: jax.Array, *, config: ModelConfig, kept: str
) -> jax.Array:
    """The logits behind one token of each row.  tokens [B T], count and at [B] -> [B V] float32"""
    B, T = tokens.shape
    cache = init_cache(config, B, T, params["embedding"]["tokens"].dtype, kept=kept)
    x, _ = transformer.hidden_states(params, tokens, count, cache, config=config)
    x = jnp.take_along_axis(x, at[:, None, None], axis=1)
    return transformer.logits(params, x, config)[:, 0]


def passed(
    params: Params, tokens: jax.Array, count: jax.Array, at: jax.Array, *, config: ModelConfig, mesh: Mesh | None, kept: str,
    keep: Mapping[str, Any] = MappingProxyType({}), change: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[jax.Array, Kept]:  # fmt: skip
    """read, harvested, and on all members of a mesh: rows are made up until they divide, and cut off again.

    kept: how the cache has keys and values, see init_cache. change: {name: (edit, arrays)}, arrays of B rows, or of one that is
    for all of them.
    """
    B = tokens.shape[0]
    rows = np.arange(B + (0 if mesh is None else -B % mesh.shape["dp"])) % B
    function = parallelize(partial(read, config=held(config, mesh), kept=kept), mesh, held(config, mesh))
    same = lambda x: x if x.shape[0] == 1 else x[rows]  # noqa: E731
    edits = {name: (partial(in_parts, edit), jax.tree.map(same, arrays)) for name, (edit, arrays) in change.items()}
    found = harvest(function, keep, edits, unpadded=config)(params, tokens[rows], count[rows], at[rows])
    return jax.tree.map(lambda x: x[:B], found)


def in_parts(edit: Edit, value: jax.Array, seen: Mapping[str, jax.Array], arrays: Any) -> jax.Array:
    """An edit of the rows that a member has."""
    return edit(value, seen, jax.tree.map(rows_of, arrays))


def logits_at(
    params: Params, tokens: jax.Array, count: jax.Array, at: jax.Array,
    *, config: ModelConfig, mesh: Mesh | None, kept: str,
) -> jax.Array:  # fmt: skip
    """read, on a mesh too."""
    return passed(params, tokens, count, at, config=config, mesh=mesh, kept=kept)[0]


def read_rows(
    params: Params, tokens: jax.Array, count: jax.Array, target: Target, rows: int, change: dict[str, Any],
    config: ModelConfig, mesh: Mesh | None, kept: str,
) -> jax.Array:  # fmt: skip
    """What is measured of a text in so many rows, changed as `passed` has it.  tokens [1 T], count [1] -> [rows] float32"""
    same = lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:]))  # noqa: E731
    args = (params, same(tokens), same(count), same(target.at[None]))
    return measure(passed(*args, config=config, mesh=mesh, kept=kept, change=change)[0], target)


def keep_values(
    params: Params, tokens: jax.Array, count: jax.Array,
    *, config: ModelConfig, mesh: Mesh | None, kept: str, keep: tuple[tuple[str, Any], ...],
) -> Kept:  # fmt: skip
    """Named values of a pass over texts, or what shrinks make of them.  tokens [B T], count [B] -> {name: [B T ..]}"""
    return passed(params, tokens, count, count - 1, config=config, mesh=mesh, kept=kept, keep=dict(keep))[1]


def measure(logits: jax.Array, target: Target) -> jax.Array:
    """What a target asks for.  [B V] -> [B]"""
    of = lambda x, token: jnp.take(x, token, axis=1, mode="clip")  # noqa: E731
    apart = of(logits, target.token) - of(logits, target.against)
    return jnp.where(target.against < 0, of(jax.nn.log_softmax(logits), target.token), apart)


def replace(value: jax.Array, seen: Any, arrays: tuple[jax.Array, jax.Array]) -> jax.Array:
    """An edit: what is somewhere else, where a mask says so. Both with as many axes as the value, of its length or 1."""
    mask, other = arrays
    return jnp.where(mask, other.astype(value.dtype), value)


@partial(jax.jit, static_argnames=("function", "config", "mesh", "static"))
def compiled(
    params: Params, arrays: tuple[Any, ...],
    *, function: Callable[..., Any], config: ModelConfig, mesh: Mesh | None, static: tuple[Any, ...],
) -> Any:  # fmt: skip
    """function(params, *arrays, config=config, mesh=mesh, **static), as one program."""
    return function(params, *arrays, config=config, mesh=mesh, **dict(static))


def run(function: Callable[..., Any], model: Model, *arrays: Any, **static: Any) -> Any:
    """A function of (params, *arrays, config, mesh, static) as a compiled program, which is kept. config is the model's own."""
    how = {"config": own_config(model), "mesh": model.mesh, "static": tuple(sorted(static.items()))}
    return compiled(model.params, arrays, function=function, **how)


def run_pass(function: Callable[..., Any], model: Model, *arrays: Any, **static: Any) -> Any:
    """run, of a function that makes a cache: kept says how, as the model has its own."""
    return run(function, model, *arrays, kept=model.cache, **static)


def fetched(tree: Any) -> Any:
    """Arrays on the host."""
    return jax.tree.map(collectives.whole, tree)


def in_rows(call: Callable[..., Any], arrays: tuple[np.ndarray, ...], T: int, dp: int = 1) -> Any:
    """A program of some rows of T tokens for any number of them, some after the others.  n x [..] -> n x what it gives

    dp: over how many devices rows are split."""
    n = len(arrays[0])
    size = buckets.power_of_two(n) if n <= STEP else -(-n // STEP) * STEP
    size = dp * -(-min(size, max(1, TOKENS // T)) // dp)
    parts = []
    for first in range(0, n, size):
        rows = np.minimum(np.arange(first, first + size), n - 1)
        parts.append(fetched(call(*(array[rows] for array in arrays))))
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
    logits = fetched(run_pass(logits_at, text.model, tokens, count, np.array([where], np.int32)))
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
