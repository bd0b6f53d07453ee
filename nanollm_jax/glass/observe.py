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

    args are pytrees of arrays, static is passed on as it is. Tags inside a scan or another loop are not seen.
    Raises RequestError for a name that does not occur, and for a change of shape or dtype.
    """
    change = change or {}
    closed, shape = jax.make_jaxpr(partial(function, **static), return_shape=True)(*args)
    values: dict[str, jax.Array] = {}
    outputs = run(closed.jaxpr, closed.consts, jax.tree.leaves(args), change, values)
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
        if equation.primitive.name == "name":
            outputs = [changed(equation.params["name"], inputs[0], change)]
            values[equation.params["name"]] = outputs[0]
        elif (inner := called(equation, inputs)) is not None:
            graph, inputs = inner
            outputs = run(graph.jaxpr, graph.consts, inputs, change, values)
        else:
            result = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
            outputs = result if equation.primitive.multiple_results else [result]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


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
