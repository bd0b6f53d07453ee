"""The engine's programs, harvested: the same tokens, and beside them what was asked for of the values inside.

An edit belongs to a row and begins at a position, so edited and plain rows share a program and a batch; whose arrays a row
takes is an argument. What a program kept is fetched when the next one is on its way, and filed by the position of each token:
a position that is computed again, as behind a draft that was refused, takes the place of what was there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax import collectives
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.programs import parallelize
from nanollm_jax.engine import slots
from nanollm_jax.engine.buckets import CHUNK
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.rows import Ticket
from nanollm_jax.glass.edits import Edit, Shrink, edited
from nanollm_jax.glass.harvest import harvest
from nanollm_jax.glass.names import letters
from nanollm_jax.glass.walk import Kept
from nanollm_jax.params import Params

NEVER = np.int32(2**31 - 1)


@dataclass(frozen=True)
class Asked:
    """What programs are compiled for: names with what shrinks them or None, and names with what changes them."""

    keep: tuple[tuple[str, Shrink | None], ...]
    change: tuple[tuple[str, Edit], ...]

    def of(self, program: str) -> Asked:
        """Those that a program has: reading computes no logits, and the first token is drawn from logits alone."""
        has = {"read_piece": lambda name: name != "logits", "draw_first": lambda name: name == "logits"}.get(
            program, bool
        )
        return Asked(*(tuple(pair for pair in pairs if has(pair[0])) for pairs in (self.keep, self.change)))  # type: ignore[arg-type]


class Row(NamedTuple):
    """What one request changes: {name: (from which position on, its arrays)}."""

    changes: dict[str, tuple[int, Any]]


class Piece(NamedTuple):
    """Values of m tokens of one row: where they stand [m], {name: tree of [m ..]}, {layer: positions of the slots [m S]}."""

    positions: np.ndarray
    values: Kept
    slots: dict[str, np.ndarray]


def changed(
    edit: Edit,
    name: str,
    value: jax.Array,
    seen: Mapping[str, jax.Array],
    arrays: tuple[jax.Array, Any, jax.Array | None],
) -> jax.Array:
    """An edit where it has begun, and the value as it was everywhere else."""
    since, own, at = jax.tree.map(lambda x: collectives.part(x, 0, "dp"), arrays)
    positions = seen["positions"] if at is None else at[:, None]
    axes = letters(name)
    assert axes is not None
    begun = positions >= since[:, None]  # [B T]
    begun = begun.reshape([value.shape[at] if letter in "BT" else 1 for at, letter in enumerate(axes)])
    return jnp.where(begun, edited(name, edit, value, seen, own), value)


@partial(jax.jit, static_argnames=("program", "asked", "config", "unpadded", "mesh", "static"), donate_argnames="state")
def harvested(
    params: Params, state: Any, rest: tuple[Any, ...], arrays: Kept, *, program: str, asked: Asked,
    config: ModelConfig, unpadded: ModelConfig | None, mesh: Mesh | None, static: tuple[tuple[str, Any], ...],
) -> tuple[Any, Kept]:  # fmt: skip
    """A program of slots.py and what is kept of it. arrays are those of `changed`, by name."""
    keep: dict[str, Shrink | None] = dict(asked.keep)
    if program != "draw_first":
        views = {name.rpartition(".")[0] for name, shrink in asked.keep if shrink is None and "S" in letters(name)}  # type: ignore[operator]
        keep |= dict.fromkeys(["positions", "real", *(f"{view}.slots" for view in sorted(views))])
    change = {name: (partial(changed, edit, name), arrays[name]) for name, edit in asked.change}
    # the program's own function, compiled here: traced, its arguments no longer say which mesh they are on
    function = partial(getattr(slots, program).__wrapped__, config=config, **dict(static))
    members = parallelize(function, mesh, config)
    return harvest(members, keep, change, rounds=CHUNK, unpadded=unpadded)(params, state, *rest)


@dataclass
class Watching:
    """The programs of one engine whose rows are watched. requests are those of its tickets, in order."""

    asked: Asked
    requests: list[Row]
    engine: Engine | None = None
    pieces: dict[int, list[Piece]] = field(default_factory=dict)  # by number of the ticket
    fetched: list[tuple[list[Ticket | None], Kept, bool]] = field(default_factory=list)

    def read(
        self, params: Params, state: slots.State, *rest: Any, config: ModelConfig, fresh: bool, other: None
    ) -> Any:
        """slots.read."""
        tickets = self.tickets(rest[2], len(rest[0]))
        static = (("fresh", fresh),)
        cache, *found = self.run("read_piece", params, state.cache, rest, tickets, config=config, static=static)
        return replace(state, cache=cache), *found

    def first(self, params: Params, state: slots.State, *rest: Any, config: ModelConfig) -> Any:
        """slots.first."""
        if not (self.asked.of("draw_first").keep or self.asked.of("draw_first").change):
            return slots.first(params, state, *rest, config=config)
        assert self.engine is not None
        texts = {slot.ticket: slot.text for slot in self.engine.slots}
        tickets = self.tickets(rest[1], len(rest[1]))
        at = np.array([len(texts[ticket]) - 1 if ticket else 0 for ticket in tickets], np.int32)
        seats = slots.seats_of(state)
        seats, drawn = self.run("draw_first", params, seats, rest, tickets, config=config, at=at, real=rest[2])
        return slots.seated(state, seats), drawn

    def write_tokens(self, params: Params, state: slots.State, *rest: Any, config: ModelConfig, **how: Any) -> Any:
        """slots.write_tokens."""
        assert self.engine is not None
        tickets = [slot.ticket for slot in self.engine.slots]
        return self.run("write_tokens", params, state, rest, tickets, config=config, static=tuple(how.items()))

    def tickets(self, row: np.ndarray, count: int) -> list[Ticket | None]:
        """Whose `count` rows are read: the first ones of each part of the rows, each by its number in it, or nobody's."""
        assert self.engine is not None
        there = {(slot.part, slot.place): slot.ticket for slot in self.engine.slots}
        parts = np.reshape(row, (self.engine.dp, -1))[:, : count // self.engine.dp]
        return [there.get((part, int(place))) for part, places in enumerate(parts) for place in places]

    def run(
        self, program: str, params: Params, state: Any, rest: tuple[Any, ...],
        tickets: list[Ticket | None], *, config: ModelConfig, static: tuple[tuple[str, Any], ...] = (),
        at: np.ndarray | None = None, real: np.ndarray | None = None,
    ) -> Any:  # fmt: skip
        """Call a program with the arrays of these rows, and note what it keeps."""
        asked = self.asked.of(program)
        arrays = {}
        for name, _ in asked.change:
            own = [self.change_of(name, ticket) for ticket in tickets]
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(values for _, values in own))
            arrays[name] = (np.array([since for since, _ in own], np.int32), stacked, at)
        assert self.engine is not None
        result, kept = harvested(
            params,
            state,
            rest,
            arrays,
            program=program,
            asked=asked,
            config=config,
            unpadded=self.engine.model.unpadded,
            mesh=self.engine.model.mesh,
            static=static,
        )
        if at is not None:
            kept |= {"positions": at[:, None], "real": np.asarray(real, np.int32)}
        self.fetch()
        self.fetched.append((tickets, kept, program == "write_tokens"))
        return result

    def change_of(self, name: str, ticket: Ticket | None) -> tuple[int, Any]:
        """From which position on a row changes a value, and its arrays; nobody's never does."""
        found = None if ticket is None else self.requests[ticket.number].changes.get(name)
        if found is not None:
            return found
        some = next(row.changes[name][1] for row in self.requests if name in row.changes)
        return int(NEVER), jax.tree.map(np.zeros_like, some)

    def fetch(self) -> None:
        """File what programs have kept until now."""
        for tickets, kept, looped in self.fetched:
            kept = jax.tree.map(collectives.whole, kept)
            if not looped:
                kept = jax.tree.map(lambda x: x[None], kept)
            shrunk = {name for name, shrink in self.asked.keep if shrink is not None}
            for row, ticket in enumerate(tickets):
                if ticket is not None:
                    self.pieces.setdefault(ticket.number, []).append(piece_of(kept, row, shrunk))
        self.fetched.clear()


def piece_of(kept: Kept, row: int, shrunk: set[str]) -> Piece:
    """What is one row's of the values of a program, {name: tree of [n B ..]}, where n are its steps."""
    positions, count = kept["positions"][:, row], kept["real"][:, row]  # [n T], [n]
    n, T = positions.shape
    real = (np.arange(T)[None] < count[:, None]).reshape(n * T)

    def tokens(x: np.ndarray, axes: list[str] | None) -> np.ndarray:
        x = x[:, row] if axes is None else np.moveaxis(x[:, row], axes.index("T"), 1)  # B is gone, n is there
        return x.reshape(n * T, *x.shape[2:])[real]

    values, found = {}, {}
    for name, value in kept.items():
        if name.endswith(".slots"):
            found[name.rpartition(".")[0]] = np.repeat(value[:, row], T, axis=0)[real]
        elif name not in ("positions", "real"):
            axes = None if name in shrunk else letters(name)
            values[name] = jax.tree.map(partial(tokens, axes=axes), value)
    return Piece(positions.reshape(n * T)[real], values, found)
