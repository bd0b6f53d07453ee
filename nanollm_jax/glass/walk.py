"""The way of harvest through a traced program, a rule for each kind of equation that has others inside.

    a tag       the value is changed, then kept
    jit         is gone into
    cond        one branch where it is known which; else all, and one that lacks a value gives NaN for it, -1 in whole numbers;
                of branches for kinds of devices the one for all others, if it has the names
    scan        a kept value gets a first axis, of steps
    while       the same, where `rounds` bounds their number
    shard_map   edits and shrinks get all heads and channels of the rows that a device has (members.py); what is kept stays
                where it is

Anything else that has a wanted name inside is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import PartitionSpec

from nanollm_jax import collectives
from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import RequestError
from nanollm_jax.glass import members
from nanollm_jax.glass.edits import Change, Shrink, check_change, edited, shrunk
from nanollm_jax.glass.names import SPLIT, expression, letters

Kept = dict[str, Any]

REASONS = {
    "while": "a loop of unknown length; say how many rounds it has at most, rounds=",
    "custom_jvp_call": "a function with derivatives of its own; name its arguments or its result",
    "custom_vjp_call": "a function with derivatives of its own; name its arguments or its result",
}


@dataclasses.dataclass
class Walk:
    """One way through a traced program: what is asked of it, and the names that were met."""

    keep: dict[str, Shrink | None]
    change: dict[str, Change]
    rounds: int | None
    own: ModelConfig | None = None  # of the model that a mesh makes heads up for
    met: dict[str, int] = dataclasses.field(default_factory=dict)  # and in how many loops
    loops: int = 0

    def __post_init__(self) -> None:
        """Read the patterns, and look at the functions."""
        for pattern, change in self.change.items():
            check_change(pattern, change)
        self.patterns = {pattern: expression(pattern) for pattern in [*self.keep, *self.change]}

    def chosen(self, asked: Iterable[str], name: str) -> list[str]:
        """Which of these patterns choose a name."""
        return [pattern for pattern in asked if self.patterns[pattern].fullmatch(name)]

    def wanted(self, graphs: Iterable[core.Jaxpr]) -> list[str]:
        """The names inside, however deep, that are asked for."""
        return [name for graph in graphs for name in names_in(graph) if self.chosen(self.patterns, name)]

    def run(self, graph: core.Jaxpr, consts: list[Any], args: list[Any], seen: dict[str, Any], kept: Kept) -> list[Any]:
        """Evaluate a graph, one equation after the other. What it keeps is added to `kept`, what it names to `seen`."""
        known = dict(zip([*graph.constvars, *graph.invars], [*consts, *args], strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else known[atom]  # noqa: E731
        for equation in graph.eqns:
            inputs = [read(atom) for atom in equation.invars]
            outputs = self.evaluate(equation, inputs, seen, kept)
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in graph.outvars]

    def evaluate(self, equation: core.JaxprEqn, inputs: list[Any], seen: dict[str, Any], kept: Kept) -> list[Any]:
        """What an equation gives."""
        if (name := name_of(equation)) is not None:
            return [self.named(name, inputs[0], seen, kept)]
        kind, params = equation.primitive.name, equation.params
        if kind == "jit":
            return self.run(params["jaxpr"].jaxpr, params["jaxpr"].consts, inputs, seen, kept)
        if kind == "cond" and not isinstance(inputs[0], jax.core.Tracer):
            # bound as it stands it would be compiled anew on each call, and each product with weights is one (ops/linear.py)
            branches = params["branches"]
            branch = branches[min(max(int(inputs[0]), 0), len(branches) - 1)]
            return self.run(branch.jaxpr, branch.consts, inputs[1:], seen, kept)
        hidden = self.wanted(graphs_in(equation))
        if not hidden:
            result = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
            return list(result) if equation.primitive.multiple_results else [result]
        rule = {"cond": self.cond, "scan": self.scan, "while": self.loop, "shard_map": self.members}.get(kind)
        new: Kept = {}
        outputs = NotImplemented if rule is None else rule(params, inputs, seen, new)
        if outputs is NotImplemented:
            reason = REASONS.get(kind, f"{kind}; take a function without it")
            raise RequestError(f"{', '.join(hidden[:3])}{' ..' * (len(hidden) > 3)}: computed inside {reason}.")
        for name, value in new.items():
            put(kept, name, value)
        return list(outputs)

    def named(self, name: str, value: Any, seen: dict[str, Any], kept: Kept) -> Any:
        """A value that has a name, or what is made of it."""
        self.met[name] = self.loops
        seen[name] = value
        for pattern in self.chosen(self.change, name):
            change = self.change[pattern]
            edit, *arrays = change if isinstance(change, tuple) else (change,)
            new = edited(name, edit, members.gather(name, value, self.own), Seen(seen, self.own), arrays)
            seen[name] = value = members.part(name, new, value, self.own)
        asked = self.chosen(self.keep, name)
        if asked and collectives.split():
            members.split_axes(name, value)
        shrinks = {self.keep[pattern] for pattern in asked}
        if len(shrinks) > 1:
            raise RequestError(f"{name} is to be kept in two ways, by {' and by '.join(asked)}; ask for one of them.")
        for shrink in shrinks:
            made = value
            if shrink is not None:
                made = shrunk(name, shrink, members.gather(name, value, self.own), Seen(seen, self.own))
            if collectives.split() and any(jnp.shape(leaf)[:1] != value.shape[:1] for leaf in jax.tree.leaves(made)):
                raise RequestError(
                    f"on a mesh what is kept of {name} needs its rows, {value.shape[0]}, as its first axis."
                )
            put(kept, name, made)
        return value

    def cond(self, params: dict[str, Any], inputs: list[Any], seen: dict[str, Any], kept: Kept) -> Any:
        """The branch that a traced index chooses."""

        def into(branch: Any, fill: Kept, *args: Any) -> tuple[list[Any], Kept]:
            new: Kept = {}
            outputs = self.run(branch.jaxpr, branch.consts, list(args), dict(seen), new)
            return outputs, {name: new.get(name, value) for name, value in (fill or new).items()}

        index, *args = inputs
        for branch, kinds in zip(params["branches"], params.get("branches_platforms") or (), strict=False):
            if kinds is None and self.wanted([branch.jaxpr]):
                return self.run(branch.jaxpr, branch.consts, args, seen, kept)
        shapes: Kept = {}
        for branch in params["branches"]:
            shapes |= jax.eval_shape(partial(into, branch, {}), *args)[1]
        fill = jax.tree.map(nothing, shapes)
        outputs, new = jax.lax.switch(index, [partial(into, branch, fill) for branch in params["branches"]], *args)
        kept |= new
        return outputs

    def scan(self, params: dict[str, Any], inputs: list[Any], seen: dict[str, Any], kept: Kept) -> Any:
        """A loop of known length."""
        if "ft_in" in params:  # from jax 0.11 on: a tree of the three kinds of inputs
            consts, carried = (len(list(kind)) for kind in params["ft_in"].unpack()[:2])
        else:
            consts, carried = params["num_consts"], params["num_carry"]
        graph, carried = params["jaxpr"], consts + carried

        def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], tuple[list[Any], Kept]]:
            new: Kept = {}
            outputs = self.round(graph, [*inputs[:consts], *carry, *x], seen, new)
            return outputs[: len(carry)], (outputs[len(carry) :], new)

        carry, (ys, new) = jax.lax.scan(
            body, inputs[consts:carried], inputs[carried:],
            length=params["length"], reverse=params["reverse"], unroll=params["unroll"],
        )  # fmt: skip
        kept |= new
        return [*carry, *ys]

    def round(self, graph: core.ClosedJaxpr, args: list[Any], seen: dict[str, Any], kept: Kept) -> list[Any]:
        """One round of a loop."""
        self.loops += 1
        try:
            return self.run(graph.jaxpr, graph.consts, args, dict(seen), kept)
        finally:
            self.loops -= 1

    def loop(self, params: dict[str, Any], inputs: list[Any], seen: dict[str, Any], kept: Kept) -> Any:
        """A loop that goes on while something holds: what is kept goes into buffers of `rounds` entries."""
        test, graph = params["cond_jaxpr"], params["body_jaxpr"]
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]

        def body(carry: list[Any]) -> tuple[list[Any], Kept]:
            new: Kept = {}
            return self.round(graph, [*inputs[first:second], *carry], seen, new), new

        start = inputs[second:]
        shapes = jax.eval_shape(body, start)[1]
        if self.wanted([test.jaxpr]) or (shapes and self.rounds is None):
            return NotImplemented
        rounds = self.rounds or 0
        stack = jax.tree.map(lambda x: nothing(x, rounds), shapes)

        def step(state: Any) -> Any:
            n, carry, stack = state
            carry, new = body(carry)
            return n + 1, carry, jax.tree.map(lambda old, x: old.at[n].set(x, mode="drop"), stack, new)

        def goes_on(state: Any) -> Any:
            return self.run(test.jaxpr, test.consts, [*inputs[:first], *state[1]], {}, {})[0]

        n, carry, stack = jax.lax.while_loop(goes_on, step, (jnp.int32(0), start, stack))
        kept |= jax.tree.map(lambda x: jnp.where(n > rounds, nothing(x), x), stack)
        return carry

    def members(self, params: dict[str, Any], inputs: list[Any], seen: dict[str, Any], kept: Kept) -> Any:
        """The program of the members of a mesh."""
        where = {"mesh": params["mesh"], "in_specs": params["in_specs"], "check_vma": params["check_vma"]}
        specs: Kept = {}

        def inside(*args: Any) -> tuple[list[Any], Kept]:
            new: Kept = {}
            outputs = self.run(params["jaxpr"], [], list(args), {}, new)
            for name, value in new.items():
                loops = (None,) * self.met[name]
                axes = ["B"] if self.shrinks(name) else letters(name) or []
                spec = PartitionSpec(*loops, *(SPLIT.get(letter) for letter in axes))
                specs[name] = jax.tree.map(lambda _, spec=spec: spec, value)
            return outputs, new

        # once for what is kept: how it is split has to be known before
        traced = jax.shard_map(lambda *args: inside(*args)[0], **where, out_specs=list(params["out_specs"]))
        jax.eval_shape(traced, *inputs)
        program = jax.shard_map(inside, **where, out_specs=(list(params["out_specs"]), dict(specs)))
        outputs, new = jax.jit(program)(*inputs)
        tp = params["mesh"].shape[collectives.AXIS]
        kept |= {name: x if self.shrinks(name) else members.owned(name, x, self.own, tp) for name, x in new.items()}
        return outputs

    def shrinks(self, name: str) -> bool:
        """Is something made of a value where it is kept?"""
        return any(self.keep[pattern] for pattern in self.chosen(self.keep, name))


class Seen(Mapping[str, jax.Array]):
    """The named values of a pass until now; on a mesh, whole."""

    def __init__(self, values: Mapping[str, jax.Array], own: ModelConfig | None) -> None:
        """Those of this member."""
        self.values_, self.own = values, own

    def __getitem__(self, name: str) -> jax.Array:
        """One of them. Raises RequestError where there is none yet."""
        if name not in self.values_:
            raise RequestError(f"{name} was not computed before; what was is {', '.join(self.values_) or 'nothing'}.")
        return members.gather(name, self.values_[name], self.own)

    def __iter__(self) -> Iterator[str]:
        """Their names, in order."""
        return iter(self.values_)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.values_)


def put(kept: Kept, name: str, value: Any) -> None:
    """Keep a value. Raises RequestError where another of its name was."""
    if name in kept:
        raise RequestError(f"{name} is computed in two places of this function; take one of its parts alone.")
    kept[name] = value


def nothing(shape: Any, *first: int) -> jax.Array:
    """What stands for a value that was not computed, or for a stack of them."""
    kinds = {jnp.inexact: jnp.nan, jnp.signedinteger: -1}
    value = next((value for kind, value in kinds.items() if jnp.issubdtype(shape.dtype, kind)), 0)
    made = jnp.full((*first, *shape.shape), value, shape.dtype)
    kind = (jax.typeof(shape) if isinstance(shape, jax.Array) else shape).manual_axis_type
    return jax.lax.pcast(made, tuple(kind.varying), to="varying") if kind is not None and kind.varying else made


def name_of(equation: core.JaxprEqn) -> str | None:
    """The name that an equation gives to a value, None where it computes one. JAX_REMAT3 has an equation of its own for it."""
    if equation.primitive.name == "name":
        return equation.params["name"]
    tag: Any = equation.params.get("_prim")
    return tag.name if type(tag).__name__ == "CheckpointName" else None


def names_in(graph: core.Jaxpr) -> Iterator[str]:
    """The names given in a graph, however deep, in order."""
    for equation in graph.eqns:
        if (name := name_of(equation)) is not None:
            yield name
        for inner in graphs_in(equation):
            yield from names_in(inner)


def graphs_in(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The graphs that an equation has inside."""
    is_graph = lambda value: isinstance(value, core.ClosedJaxpr | core.Jaxpr)  # noqa: E731
    held = [equation.params, getattr(equation.params.get("_prim"), "params", None)]  # the second under JAX_REMAT3
    for value in jax.tree.leaves(held, is_leaf=is_graph):
        if is_graph(value):
            yield value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
