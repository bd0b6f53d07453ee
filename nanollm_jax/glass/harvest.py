"""The glass box: keep and change any named value inside a function, also inside its loops, without changing the function.

model.py tags its values with names. A tag is an equation of the traced program and gone once the program is lowered, so
the fast path pays nothing; here the traced program is gone through equation by equation (walk.py) and the tags are looked at.
What comes out is a pure function again: jit, vmap and grad work on it, and of what nobody asked for nothing leaves the
compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax

from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import RequestError
from nanollm_jax.glass.edits import Change, Shrink, kept_by
from nanollm_jax.glass.names import check_found
from nanollm_jax.glass.walk import Kept, Walk, names_in


def harvest(
    function: Callable[..., Any],
    keep: str | Iterable[str] | Mapping[str, Shrink | None] = (),
    change: Mapping[str, Change] | None = None,
    *,
    rounds: int | None = None,
    unpadded: ModelConfig | None = None,
) -> Callable[..., tuple[Any, Kept]]:
    """A function of the same arguments that returns the function's result and the kept values, {name: value} in order.

    keep     patterns of names (names.py), or {pattern: shrink}: shrink(value, seen), any pytree, is kept in place of the value
    change   {pattern: edit} or {pattern: (edit, arrays)}: edit(value, seen) or edit(value, seen, arrays), in the same shape and
             dtype, is used instead from there on, and is what is kept
    rounds   of while loops, how many there are at most; where there are more, nothing is kept (NaN, and -1 of whole numbers)
    unpadded that of a model on a mesh: values have the heads and channels that it has itself, and none that the mesh made up
    seen     the named values of the same pass until there, the value itself as it was: seen["positions"] [B T]

        logits = harvest(forward, change={"layers.2.out": (lambda x, seen, v: x + v, vector)})
        jax.jit(lambda params, tokens, cache, vector: ...)      # under jit another vector compiles nothing

    args are pytrees of arrays; keywords are passed on as they are. Raises RequestError for a pattern that chooses nothing, for
    a name that cannot be seen where it stands or stands in two places, and for an edit that gives another shape or dtype.
    """
    if isinstance(function, jax.stages.Compiled | jax.stages.Lowered):
        raise RequestError("a program that was lowered has no names any more; pass the function that it was made of.")
    if not callable(function):
        raise RequestError(f"the first argument is {type(function).__name__}; expected a function, such as forward.")
    walk = Walk(kept_by(keep), dict(change or {}), rounds, unpadded)

    def harvested(*args: Any, **static: Any) -> tuple[Any, Kept]:
        for leaf in jax.tree.leaves(args):
            if not (hasattr(leaf, "shape") or isinstance(leaf, bool | int | float | complex)):
                raise RequestError(
                    f"an argument has {type(leaf).__name__} in it; expected arrays and trees of them, as in forward("
                    "model.params, tokens, cache, config=model.config)."
                )
        closed, shape = jax.make_jaxpr(partial(function, **static), return_shape=True)(*args)
        check_found(walk.patterns, dict.fromkeys(names_in(closed.jaxpr)))
        walk.met.clear()
        kept: Kept = {}
        outputs = walk.run(closed.jaxpr, closed.consts, jax.tree.leaves(args), {}, kept)
        check_found(walk.patterns, walk.met)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs), {
            name: kept[name] for name in walk.met if name in kept
        }

    return harvested
