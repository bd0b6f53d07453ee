"""The compiled programs of rows that come and go, and the state that they hand on. Few, of fixed shapes; all else is traced.

    empty         rows that are nobody's
    begin         a row is somebody's: its settings are put on the device, once
    read          the next piece of a row's prompt, or of several rows' where they are short
    first         the first token of an answer is drawn behind the last piece
    score         how likely the tokens of a piece were
    write_tokens  a chunk for all live rows; a row that has ended writes nothing and draws nothing
    resize        another capacity

Two more are in prefix.py, and two in pooling.py. Each takes the state, or what it needs of it, and gives it back, updated in
place. On a mesh dp rows at a time are begun, and dp times as many read, alike of each part of the rows; row numbers count
within a part, and those past the last row are nobody's.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from nanollm_jax import cache as kv
from nanollm_jax import model
from nanollm_jax import sampling as smp
from nanollm_jax.cache import KVCache
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.programs import Other, program
from nanollm_jax.engine import drafts
from nanollm_jax.engine.buckets import CHUNK
from nanollm_jax.engine.drafts import Drafter, Lookup
from nanollm_jax.engine.draws import Asked, Drawn, best_of, draw, none_of
from nanollm_jax.letters import axes, nbytes, pytree, static
from nanollm_jax.params import Params, for_rows
from nanollm_jax.settings import Sampling

Guesses = Lookup | Drafter | None


@pytree
class State:
    """What the device holds for B rows.

    token is the one that was drawn and not yet run: a row that has read its prompt and drawn nothing else is at length
    positions in the cache, and its token will stand at position `length`. live rows go on.
    draft is the cache of a model that guesses, at the same positions; its length is that of the other.
    Row of 5 prompt ids that drew one token, 3 allowed: length 5, live, left 2. After one step: length 6, left 1.
    """

    cache: KVCache
    asked: Asked
    token: jax.Array = axes("B")
    live: jax.Array = axes("B")
    draft: KVCache | None = None

    def __repr__(self) -> str:
        return f"State({self.cache}, history of {self.cache.capacity} ids a row, {nbytes(self)} in all)"


@pytree
class Seats:
    """A state without keys and values: what a program that needs none takes, and is then one for all capacities.

    mesh is that of the cache: row numbers count within a part of the rows, so traced it has to be known as well.
    """

    asked: Asked
    token: jax.Array = axes("B")
    live: jax.Array = axes("B")
    length: jax.Array = axes("B")
    mesh: Mesh | None = static(default=None)


@pytree
class Scored:
    """How likely given tokens are after those before them, whether each is the best one [B T], and the best TOPS [B T X]."""

    logprob: jax.Array = axes("B T")
    best: jax.Array = axes("B T")
    top_tokens: jax.Array = axes("B T X")
    top_logprobs: jax.Array = axes("B T X")


def empty_state(
    *, config: ModelConfig, rows: int, capacity: int, dtype: Any, kept: str = "auto", spare: int = 0,
    draft: tuple[ModelConfig, Any, str] | None = None, mesh: Mesh | None = None,
) -> State:  # fmt: skip
    """Rows that are nobody's. dtype is that of the weights, kept how keys and values are; draft has those of who guesses."""

    def cache(config: ModelConfig, dtype: Any, kept: str) -> KVCache:
        made = kv.init_cache(config, rows, min(capacity, config.max_positions), dtype, mesh, spare=spare, kept=kept)
        return dataclasses.replace(made, fresh=False)

    V, zeros = config.vocab_size, partial(jnp.zeros, rows)  # a buffer each: all of them are donated
    sampling = jax.tree.map(jnp.array, Sampling(temperature=0.0).rows(rows, V))
    history = smp.no_history(rows, V, config.max_positions)
    numbers = {"seed": zeros(jnp.uint32), "free": zeros(bool)}
    numbers |= {name: zeros(jnp.int32) for name in ("tops", "left", "adapter")}
    asked = Asked(history, sampling, **numbers)
    guesses = None if draft is None else cache(*draft)
    return State(cache(config, dtype, kept), asked, token=zeros(jnp.int32), live=zeros(bool), draft=guesses)


@program(static=("rows", "capacity", "dtype", "kept", "spare", "draft"))
def empty(
    *, config: ModelConfig, rows: int, capacity: int, dtype: Any, kept: str, spare: int,
    draft: tuple[ModelConfig, Any, str] | None,
) -> State:  # fmt: skip
    """empty_state of one device, made there at once. On a mesh each array is made where it belongs."""
    return empty_state(config=config, rows=rows, capacity=capacity, dtype=dtype, kept=kept, spare=spare, draft=draft)


def seats_of(state: State) -> Seats:
    """What begin and first need of a state."""
    return Seats(state.asked, state.token, state.live, state.cache.length, state.cache.mesh)


def seated(state: State, seats: Seats) -> State:
    """The state with what became of that."""
    cache = dataclasses.replace(state.cache, length=seats.length)
    return State(cache, seats.asked, seats.token, seats.live, state.draft)


def begin(state: State, asked: Asked, row: ArrayLike, length: ArrayLike, *, config: ModelConfig) -> State:
    """Give rows to somebody: they hold the first `length` [R] positions of what they held, and are about to read."""
    return seated(state, sit(seats_of(state), asked, row, length, config=config))


@program(donate=("seats",))
def sit(seats: Seats, asked: Asked, row: jax.Array, length: jax.Array, *, config: ModelConfig) -> Seats:
    """begin, for all capacities of a cache."""
    put = lambda old, new: old.at[row].set(new.astype(old.dtype), mode="drop")  # noqa: E731
    live, asked = put(seats.live, jnp.zeros_like(row)), jax.tree.map(put, seats.asked, asked)
    return dataclasses.replace(seats, asked=asked, live=live, length=put(seats.length, length))


def read(
    params: Params, state: State, tokens: ArrayLike, count: ArrayLike, row: ArrayLike, at: ArrayLike, end: ArrayLike,
    adapter: ArrayLike, *, config: ModelConfig, fresh: bool, other: Other | None = None,
) -> tuple[State, jax.Array, jax.Array]:  # fmt: skip
    """read_piece of the model's cache, and of that of a model that guesses.  -> state, and what read_piece gives"""
    cache, x, last = read_piece(params, state.cache, tokens, count, row, at, end, adapter, config=config, fresh=fresh)
    state = dataclasses.replace(state, cache=cache)
    return draft_reads(other, state, tokens, count, row, at, end, fresh=fresh), x, last


def draft_reads(
    other: Other | None, state: State, tokens: ArrayLike, count: ArrayLike, row: ArrayLike, at: ArrayLike, end: ArrayLike,
    *, fresh: bool,
) -> State:  # fmt: skip
    """read_piece of the cache of a model that guesses, where there is one."""
    if other is None:
        return state
    none = np.zeros_like(count)
    draft, *_ = read_piece(
        other.params, state.draft, tokens, count, row, at, end, none, config=other.config, fresh=fresh
    )
    return dataclasses.replace(state, draft=draft)


@program(static=("fresh",), donate=("cache",))
def read_piece(
    params: Params, cache: KVCache, tokens: jax.Array, count: jax.Array, row: jax.Array, at: jax.Array, end: jax.Array,
    adapter: jax.Array, *, config: ModelConfig, fresh: bool,
) -> tuple[KVCache, jax.Array, jax.Array]:  # fmt: skip
    """Read one piece of the prompts of R rows behind what each holds.  tokens [R T], the others [G], G the largest R

    count says how many tokens are real, row whose they are, at which position the first stands, end how long the whole text
    is, adapter which one the row takes; the first R of these are looked at. fresh: the rows hold nothing yet.
    -> cache, the final residual stream of the piece [R T D] and at the last real token of each row [G D]
    """
    G, R = count.shape[0], tokens.shape[0]
    count, row, at, end, adapter = (numbers[:R] for numbers in (count, row, at, end, adapter))
    part = dataclasses.replace(kv.select(cache, row, fresh), length=at)
    x, part = model.hidden_states(for_rows(params, adapter), tokens, count, part, config=config, end=end)
    last = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    last = jnp.pad(last, ((0, G - R), (0, 0)))
    return kv.put_back(cache, part), x, last


def first(
    params: Params, state: State, x: ArrayLike, row: ArrayLike, last: ArrayLike, allowed: ArrayLike, *, config: ModelConfig
) -> tuple[State, Drawn]:  # fmt: skip
    """Draw the first token of those of G rows that have read their last piece.  x [G D] from read, row and last [G] -> [G 1]
    allowed [G ceil(V/32)] says which tokens each may draw, see sampling.keep_allowed.
    """
    seats, drawn = draw_first(params, seats_of(state), x, row, last, allowed, config=config)
    return seated(state, seats), drawn


@program(donate=("seats",))
def draw_first(
    params: Params, seats: Seats, x: jax.Array, row: jax.Array, last: jax.Array, allowed: jax.Array, *, config: ModelConfig
) -> tuple[Seats, Drawn]:  # fmt: skip
    """first, for all capacities of a cache."""
    own, length = jax.tree.map(lambda array: array.at[row].get(mode="clip"), (seats.asked, seats.length))
    logits = model.logits(for_rows(params, own.adapter), x[:, None], config)[:, 0]
    own, goes_on, drawn = draw(own, logits, length, last, allowed)
    put = lambda old, new: old.at[row].set(new, mode="drop")  # noqa: E731
    history, left = jax.tree.map(put, (seats.asked.history, seats.asked.left), (own.history, own.left))
    asked = dataclasses.replace(seats.asked, history=history, left=left)
    seats = dataclasses.replace(seats, asked=asked, token=put(seats.token, drawn.token), live=put(seats.live, goes_on))
    return seats, jax.tree.map(lambda x: x[:, None], drawn)


@program()
def score(
    params: Params, x: jax.Array, targets: jax.Array, count: jax.Array, tops: jax.Array, adapter: jax.Array,
    *, config: ModelConfig,
) -> Scored:  # fmt: skip
    """How likely the tokens behind those of a piece are.  x [R T D] from read, targets [R T], the others [G] -> [R T]"""
    count, tops, adapter = (numbers[: len(x)] for numbers in (count, tops, adapter))
    logits = model.logits(for_rows(params, adapter), x, config)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # one for all: the best token's logprob is one number
    found = (jnp.take_along_axis(logits, targets[:, :, None], axis=-1) - total)[:, :, 0]
    tops = jnp.broadcast_to(jnp.where(count > 0, tops, 0)[:, None], targets.shape)
    return Scored(found, jnp.argmax(logits, axis=-1) == targets, *best_of(logits, tops, total))


@program(static=("speculate",), donate=("state",))
def write_tokens(
    params: Params, state: State, steps: jax.Array, allowed: jax.Array, other: Other | None = None,
    *, config: ModelConfig, speculate: Guesses = None,
) -> tuple[State, Drawn]:  # fmt: skip
    """Up to `steps` [B] steps for each live row, CHUNK at most; a row with none is nobody's any more.  -> state, [B CHUNK*T]

    One loop that carries the cache, and ends when no row goes on: so chunks of all lengths are one program. (A scan that skips
    its last steps by a cond does the same; XLA on a GPU then copies the cache in each, for the one branch and for the other.)
    A step writes T tokens at most, one and those that are guessed. allowed [B ceil(V/32)] says which tokens each row may draw,
    in all steps: a row whose next token depends on the one before it has one step.
    """
    state = dataclasses.replace(state, live=state.live & (steps > 0))
    T = 1 + drafts.spare(speculate)
    none = jax.tree.map(lambda x: jnp.stack([jnp.stack([x] * T, axis=1)] * CHUNK), nothing(seats_of(state)))

    def goes_on(carry: tuple[jax.Array, State, Drawn]) -> jax.Array:
        n, state, _ = carry
        return (n < CHUNK) & jnp.any(state.live & (n < steps))

    def one(carry: tuple[jax.Array, State, Drawn]) -> tuple[jax.Array, State, Drawn]:
        n, state, drawn = carry
        state, new = step(params, state, state.live & (n < steps), allowed, config, speculate, other)
        return n + 1, state, jax.tree.map(lambda all_of_them, x: all_of_them.at[n].set(x), drawn, new)

    _, state, drawn = jax.lax.while_loop(goes_on, one, (jnp.int32(0), state, none))  # [n B T ..]
    return state, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, CHUNK * T, *x.shape[3:]), drawn)


def step(
    params: Params, state: State, goes: jax.Array, allowed: jax.Array, config: ModelConfig,
    speculate: Guesses = None, other: Other | None = None,
) -> tuple[State, Drawn]:  # fmt: skip
    """One step of write_tokens, and a pure function: run the token of each row that goes on [B] and those that are guessed to
    follow it, draw at each place as if nothing were guessed, up to the first that was not guessed right.  -> state, [B T]
    """
    params = for_rows(params, state.asked.adapter)
    if speculate is None:
        x, cache = model.hidden_states(params, state.token[:, None], 1 * goes, state.cache, config=config)
        seats, drawn = draw_at(seats_of(state), model.logits(params, x, config)[:, 0], goes, allowed)
        return seated(dataclasses.replace(state, cache=cache), seats), jax.tree.map(lambda x: x[:, None], drawn)
    drafts, found, draft = speculate.propose(other, state, goes)
    found &= state.asked.free
    block = jnp.concatenate([state.token[:, None], drafts], axis=1)
    T, at, left = block.shape[1], state.cache.length, state.asked.left
    # a draft past longrope's original length is not what decides how the tokens before it are turned
    x, cache = model.hidden_states(params, block, T * goes, state.cache, config=config, end=at + 1)

    def place(carry: tuple[Seats, jax.Array], now: tuple[jax.Array, jax.Array]) -> tuple[Any, Drawn]:
        (seats, goes), (guess, logits) = carry, now
        goes = goes & seats.live & (seats.token == guess)
        idle = lambda: (seats, nothing(seats))  # noqa: E731
        seats, drawn = jax.lax.cond(jnp.any(goes), lambda: draw_at(seats, logits, goes, allowed), idle)
        return (seats, goes), drawn

    # all places in one loop: compiled twice, the same sums may have other last bits
    guesses = jnp.where((jnp.arange(T) > 0)[None] & ~found[:, None], -1, block)
    logits = jnp.swapaxes(model.logits(params, x, config), 0, 1)
    (seats, _), drawn = jax.lax.scan(place, (seats_of(state), goes), (guesses.T, logits))
    drawn = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn)
    drafted = (goes & found)[:, None] & (jnp.arange(T)[None] > 0) & (jnp.arange(T)[None] < left[:, None])
    drawn = dataclasses.replace(drawn, drafted=drafted)
    return seated(dataclasses.replace(state, cache=cache, draft=draft), seats), drawn


def draw_at(seats: Seats, logits: jax.Array, goes: jax.Array, allowed: jax.Array) -> tuple[Seats, Drawn]:
    """The token of those rows that go on [B] was run: draw the next one, from logits [B V].  -> seats, [B]"""
    asked, goes_on, drawn = draw(seats.asked, logits, seats.length + 1, goes, allowed)
    put = lambda new, old: jnp.where(goes, new, old)  # noqa: E731
    token, live, length = put(drawn.token, seats.token), put(goes_on, seats.live), seats.length + goes
    return dataclasses.replace(seats, asked=asked, token=token, live=live, length=length), drawn


def nothing(seats: Seats) -> Drawn:
    """What is drawn where no row goes on.  -> [B]"""
    none, left = seats.live & False, seats.asked.left
    return Drawn(seats.token, (0 * left).astype(jnp.float32), none, none, *none_of(seats.asked.tops))


def resize(state: State, *, config: ModelConfig, capacity: int, other: Other | None = None) -> State:
    """The same state with caches of another capacity; that of a model that guesses has no more than its positions."""
    state = dataclasses.replace(state, cache=resized(state.cache, config=config, capacity=capacity))
    if other is None:
        return state
    capacity = min(capacity, other.config.max_positions)
    return dataclasses.replace(state, draft=resized(state.draft, config=other.config, capacity=capacity))


@program(static=("capacity",))
def resized(cache: KVCache, *, config: ModelConfig, capacity: int) -> KVCache:
    """The same cache with another capacity. What keeps its size is handed through."""
    return kv.resize(cache, config, capacity)
