"""The glass box: collect or replace any named value inside a function, without changing the function.

model.py tags its values with names. A tag is an equation of the traced program and gone once the program is lowered,
so the fast path pays nothing; here the traced program is run equation by equation and the tags are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.extend import core

from nanollm_jax.errors import RequestError

Change = Callable[[jax.Array], jax.Array]


def observe(
    function: Callable[..., Any], *args: Any, change: Mapping[str, Change] | None = None, **static: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """Run function(*args, **static) and return its result and every value that was tagged, {name: value}, in order.

    `change` maps names to functions of the value: what they return, in the same shape and dtype, is used instead from there on.

        (logits, cache), values = observe(forward, params, tokens, cache, config=config)
        values["layers.3.attention.weights"]                                            # [B K G T S]
        observe(forward, ..., change={"layers.3.mlp.out": jnp.zeros_like})              # without that MLP

    args are pytrees of arrays, static is passed on as it is. Raises RequestError where a named value cannot be seen: inside a
    loop, on a mesh, in a branch that a traced value chooses, in a program that is compiled already; where nothing has a
    name; for a name that does not occur, and for a change of shape or dtype.
    """
    if isinstance(function, jax.stages.Compiled | jax.stages.Lowered):
        raise RequestError("a program that was lowered has no names any more; pass the function that it was made of.")
    for leaf in jax.tree.leaves(args):
        if not (hasattr(leaf, "shape") or isinstance(leaf, bool | int | float | complex)):
            raise RequestError(
                f"an argument has {type(leaf).__name__} in it; expected arrays and trees of them, as in observe(forward, "
                "model.params, tokens, cache, config=model.config)."
            )
    change = change or {}
    closed, shape = jax.make_jaxpr(partial(function, **static), return_shape=True)(*args)
    values: dict[str, jax.Array] = {}
    outputs = run(closed.jaxpr, closed.consts, jax.tree.leaves(args), change, values)
    if not values:
        raise RequestError(
            "nothing in this function has a name; observe forward, or a function that calls it or names its values with "
            "jax.ad_checkpoint.checkpoint_name."
        )
    if unknown := sorted(change.keys() - values.keys()):
        raise RequestError(f"no value is named {', '.join(unknown)}; the names are {', '.join(values)}.")
    return jax.tree.unflatten(jax.tree.structure(shape), outputs), values


def run(
    jaxpr: core.Jaxpr, consts: list[Any], args: list[Any], change: Mapping[str, Change], values: dict[str, jax.Array]
) -> list[Any]:
    """Evaluate a traced program one equation after the other, noting and changing the tagged values on the way."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if (name := name_of(equation)) is not None:
            outputs = [changed(name, inputs[0], change)]
            values[name] = outputs[0]
        elif (inner := called(equation, inputs)) is not None:
            graph, inputs = inner
            outputs = run(graph.jaxpr, graph.consts, inputs, change, values)
        elif hidden := sorted(names_inside(equation)):
            raise RequestError(refusal(equation.primitive.name, hidden))
        else:
            result = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
            outputs = result if equation.primitive.multiple_results else [result]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def name_of(equation: core.JaxprEqn) -> str | None:
    """The name that an equation gives to a value, None where it computes one. JAX_REMAT3 has an equation of its own for it."""
    if equation.primitive.name == "name":
        return equation.params["name"]
    tag: Any = equation.params.get("_prim")
    return tag.name if type(tag).__name__ == "CheckpointName" else None


def names_inside(equation: core.JaxprEqn) -> set[str]:
    """The names given in the graphs that an equation has inside, however deep."""
    found = set()
    for value in jax.tree.leaves(
        equation.params, is_leaf=lambda value: isinstance(value, core.ClosedJaxpr | core.Jaxpr)
    ):
        graph = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        for inner in graph.eqns if isinstance(graph, core.Jaxpr) else ():
            name = name_of(inner)
            found |= names_inside(inner) if name is None else {name}
    return found


def refusal(primitive: str, hidden: list[str]) -> str:
    """Why the names inside such an equation cannot be seen, and what to do."""
    reasons = {
        "shard_map": "on a mesh, each device having a part of it; observe the model on one device, loaded without a mesh",
        "scan": "inside a loop, once per step; observe a single step: forward, with one token per row",
        "while": "inside a loop, once per step; observe a single step: forward, with one token per row",
        "cond": "in a branch that a traced value chooses; observe outside of jit, where it is known",
    }
    reason = reasons.get(primitive, f"inside {primitive}; observe a function without it")
    return f"{', '.join(hidden[:3])}{' ..' * (len(hidden) > 3)}: computed {reason}."


def called(equation: core.JaxprEqn, inputs: list[Any]) -> tuple[core.ClosedJaxpr, list[Any]] | None:
    """The graph inside an equation and its inputs: of a jit, or of a cond whose branch is known; None for anything else.

    A cond that is bound as it stands is compiled anew on each call, and each product with weights is one (ops/linear.py).
    """
    if equation.primitive.name == "jit":
        return equation.params["jaxpr"], inputs
    if equation.primitive.name == "cond" and not isinstance(inputs[0], jax.core.Tracer):
        branches = equation.params["branches"]
        return branches[min(max(int(inputs[0]), 0), len(branches) - 1)], inputs[1:]
    return None


def changed(name: str, value: jax.Array, change: Mapping[str, Change]) -> jax.Array:
    """The value, or what `change` makes of it."""
    new = change[name](value) if name in change else value
    if new.shape != value.shape or new.dtype != value.dtype:
        raise RequestError(
            f"the change of {name} gave {new.dtype}{list(new.shape)}; expected {value.dtype}{list(value.shape)}."
        )
    return new
