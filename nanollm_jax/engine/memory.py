"""Whether rows have room on their device, and what is said where they have not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from nanollm_jax import cache as kv
from nanollm_jax import files, layout
from nanollm_jax.engine import buckets, drafts, slots
from nanollm_jax.engine.slots import State
from nanollm_jax.errors import RequestError
from nanollm_jax.loading import Model

if TYPE_CHECKING:
    from nanollm_jax.engine.engine import Engine
    from nanollm_jax.engine.rows import Ticket


class NoRoomError(RequestError):
    """A device without the memory that rows need."""


def empty_rows(engine: Engine, capacity: int) -> State:
    """An engine's rows, of so many positions, nobody's: on one device made at once, on a mesh each array where it belongs."""
    dtype = lambda params: params["embedding"]["tokens"].dtype  # noqa: E731
    model, other = engine.model, engine.other
    draft = None if other is None else (other.config, dtype(other.params), model.cache)
    how: dict[str, Any] = {"config": model.config, "dtype": dtype(model.params), "kept": model.cache, "draft": draft}
    how |= {"rows": engine.rows, "capacity": capacity, "spare": engine.spare}
    return slots.empty(**how) if model.mesh is None else slots.empty_state(**how, mesh=model.mesh)


def needed(model: Model, rows: int, capacity: int, speculate: drafts.Speculate = None) -> int:
    """Bytes of one device for so many rows of so many positions, for drawing their next tokens, and for who guesses these."""
    tp, spare = 1 if model.mesh is None else model.mesh.shape["tp"], drafts.spare(speculate)

    def row(one: Model) -> tuple[int, int]:
        size = kv.dtype_of(one.params["embedding"]["tokens"].dtype).itemsize
        return layout.row_nbytes(one.config, min(capacity, one.config.max_positions), size, tp, spare, model.cache)

    other = row(speculate.model)[0] if isinstance(speculate, drafts.DraftModel) else 0
    return rows // model.dp * (sum(row(model)) + other)


def least(model: Model, positions: int, speculate: drafts.Speculate = None) -> int:
    """How many positions an engine's rows have from the start, whose longest texts take so many.

    All, where steps read the filled ones alone, those of who guesses as well: nobody waits while rows are copied into longer
    ones, and fewer programs are made. Elsewhere each costs time while it is empty.
    """
    models = (model, speculate.model) if isinstance(speculate, drafts.DraftModel) else (model,)
    alone = all(kv.steps_look_at_filled(one.params["embedding"]["tokens"].dtype) for one in models)
    return min(positions, model.config.max_positions) if alone else 1


def free() -> int | None:
    """Bytes of this process's first device that nobody has; None where that is not known.

    Several processes have to decide the same, and none of them knows what the others have.
    """
    if jax.process_count() > 1:
        return None
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    return files.free_memory() if jax.default_backend() == "cpu" else None


def check_room(model: Model, rows: int, capacity: int, had: int = 0, speculate: drafts.Speculate = None) -> None:
    """Raise NoRoomError unless there is room for rows of so many positions, beside the `had` ones that they have now."""
    left = free()
    if left is not None and needed(model, rows, capacity, speculate) > left:
        raise NoRoomError(no_room(model, rows, capacity, had, speculate))


def no_room(model: Model, rows: int, capacity: int, had: int, speculate: drafts.Speculate = None) -> str:
    """What is said to who asks for too much: what would fit, of fewer positions or of fewer rows."""
    left, need = free(), needed(model, rows, capacity, speculate)
    known = f"{need / 1e6:,.1f} MB" + ("" if left is None else f", and {left / 1e6:,.1f} MB are free")
    fits = lambda rows, capacity: left is not None and need > left and needed(model, rows, capacity, speculate) <= left  # noqa: E731
    shorter = [
        S for S in buckets.capacities(model.config.max_positions) if had >= S or (capacity > S and fits(rows, S))
    ]
    fewer = 0 if left is None or need <= left else left // needed(model, model.dp, capacity, speculate) * model.dp
    offers = [f"ask for {max(shorter):,} positions, prompt and answer together, or fewer"] if shorter else []
    offers += [f"take rows={fewer}"] if fewer else []
    return (
        f"{rows} row{'s' * (rows > 1)} of {capacity:,} positions need more memory than the device has: {known}; "
        f"{', or '.join(offers) or 'free some, or take a smaller model, or the same with dtype=int8'}."
    )


def fitting(model: Model, wanted: int, positions: int, speculate: drafts.Speculate = None) -> int:
    """How many rows of so many positions there is room for: of the engines' sizes the largest up to the wanted one.

    Raises NoRoomError where there is none for the smallest.
    """
    capacity, left = buckets.capacity(positions, model.config.max_positions), free()
    for rows in sorted((n * model.dp for n in buckets.ROWS if n * model.dp <= wanted), reverse=True):
        if left is None or needed(model, rows, capacity, speculate) <= left:
            return rows
    raise NoRoomError(no_room(model, model.dp, capacity, 0, speculate))


def served(model: Model, rows: int | None, context: int | None, speculate: drafts.Speculate = None) -> tuple[int, int]:
    """How many rows of how many positions a server has that was told so many; None is what suits the device and the model.

    Raises RequestError for more positions than the model has, NoRoomError where there is no memory for all of them.
    """
    limit = model.config.max_positions
    if context is not None and context > limit:
        raise RequestError(f"--context {context} is more than the model's {limit} positions.")
    context = min(limit, 4096) if context is None else context
    rows = (4 if jax.default_backend() == "cpu" else 32) if rows is None else rows
    rows = -(-rows // model.dp) * model.dp
    check_room(model, rows, buckets.capacity(context, limit), speculate=speculate)
    return rows, context


def make_room(engine: Engine, positions: int) -> bool:
    """Give an engine a capacity of so many positions at least. Had it less? Raises NoRoomError where there is no memory."""
    capacity = buckets.capacity(min(positions, engine.config.max_positions), engine.config.max_positions)
    if capacity <= (had := engine.state.cache.capacity):
        return False
    check_room(engine.model, engine.rows, capacity, had, engine.speculate)
    engine.state = slots.resize(engine.state, config=engine.config, capacity=capacity, other=engine.other)
    return True


def shrunk(engine: Engine, tickets: Sequence[Ticket]) -> State:
    """The state of an engine in which nobody is, with no more room than these need soon: what is not there is not looked at.

    One that has what they need stays: a new one costs its bytes. So does a larger one beside which another finds no room.
    """
    asked = (len(one.request.text) + min(one.request.max_new_tokens, buckets.SMALLEST) for one in tickets)
    need = max(engine.least, *asked)
    smaller = buckets.capacity(need, engine.config.max_positions) < engine.state.cache.capacity
    try:
        return engine.empty(need) if smaller else engine.state
    except Exception as error:
        if jax.process_count() > 1 or not ran_out(error):  # what one has no memory for, another may have
            raise
        return engine.state


def places(engine: Engine, limit: int | None) -> int:
    """How many blocks of a prefix each part of an engine's rows may keep in so many bytes; None is buckets' choice."""
    block = sum(layer.block_nbytes(engine.rows, engine.piece) for layer in engine.state.cache.layers)
    limit = buckets.prefix_bytes(block * engine.config.max_positions // engine.piece) if limit is None else limit
    return limit // (block * engine.dp) if block else 0  # convolutions of one token alone remember nothing


def ran_out(error: BaseException) -> bool:
    """Is this what JAX says where an array finds no room, or what is said here?"""
    return isinstance(error, NoRoomError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def lost(state: Any) -> bool:
    """Was a state or a pool used up by a program that did not give it back?"""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def refuse(engine: Engine) -> list[Ticket]:
    """Tell those of an engine who want more positions than there are in its rows, after a step that found no memory.

    All that have a row are told where the state went with the step, or where nothing was to grow. -> who was told
    """
    had, gone = engine.state.cache.capacity, lost(engine.state)
    seated = [slot for slot in engine.slots if slot.ticket is not None]
    ends = {
        slot: slot.at + slot.piece(engine.piece) if slot.reading else slot.filled + buckets.CHUNK for slot in seated
    }
    told = [slot for slot in seated if ends[slot] > had and not gone] or seated
    wanted = max(had, buckets.capacity(max((ends[slot] for slot in told), default=1), engine.config.max_positions))
    error = NoRoomError(no_room(engine.model, engine.rows, wanted, 0 if wanted == had else had, engine.speculate))
    for slot in told:
        assert slot.ticket is not None
        slot.ticket.error = slot.ticket.error or error
    if gone:
        engine.pending.clear()
        engine.state = engine.empty()
    if engine.pool is not None and (gone or lost(engine.pool)):
        engine.forget()
    return [slot.ticket for slot in told if slot.ticket is not None]
