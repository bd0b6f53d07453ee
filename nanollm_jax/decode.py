"""The compiled programs: one reads prompts, one writes tokens; the cache is donated to both, updated in place.

prefill and decode check their arguments and call them. They are compiled once per config, mesh, batch, cache
capacity, and padded prompt or chunk length; sampling settings, seeds and real prompt lengths are traced and never compile
anything.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax import model
from nanollm_jax import sampling as smp
from nanollm_jax.cache import KVCache, check_room
from nanollm_jax.checks import check_count
from nanollm_jax.collectives import whole
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.programs import program
from nanollm_jax.errors import RequestError
from nanollm_jax.letters import nbytes, pytree
from nanollm_jax.params import Params
from nanollm_jax.sampling import History
from nanollm_jax.settings import Sampling


@pytree
class State:
    """Where B rows stand between two tokens: the logits of what comes next [B V] float32, the cache, and the history."""

    logits: jax.Array
    cache: KVCache
    past: History

    def __repr__(self) -> str:
        return f"State(logits {list(self.logits.shape)}, {self.cache}, {nbytes(self)} in all)"


def init_state(cache: KVCache, config: ModelConfig) -> State:
    """Rows that nothing was said to: no logits yet, an empty history."""
    B, V = cache.batch, config.vocab_size
    return State(jnp.zeros((B, V), jnp.float32), cache, smp.no_history(B, V, config.max_positions))


def prefill(
    params: Params,
    tokens: jax.Array | np.ndarray,
    lengths: jax.Array | np.ndarray,
    cache: KVCache | State,
    *,
    config: ModelConfig,
    end: jax.Array | np.ndarray | None = None,
) -> State:
    """Read a prompt per row, each behind what its row of the cache already holds. Of a State, whose history goes on.

    tokens [B T] int32, padded on the right with any ids; lengths [B] int32, the real ones. The cache is used up: take
    the one in the returned State. end [B] is how long the whole text of each row is, where more pieces of it are to come:
    longrope turns long texts otherwise. Raises RequestError for lengths outside 1 to T, ids past the vocabulary, and prompts
    past the cache's capacity.
    """
    tokens, lengths = (np.asarray(x) if isinstance(x, list | tuple) else x for x in (tokens, lengths))
    end = np.asarray(end) if isinstance(end, list | tuple) else end
    state = cache if isinstance(cache, State) else init_state(cache, config)
    check_room(state.cache, tokens, lengths, config)
    (B, T), known = tokens.shape, np.asarray(lengths)
    if known.shape != (B,) or known.min() < 1 or known.max() > T:
        raise RequestError(f"lengths are {known.tolist()}; expected {B} numbers from 1 to {T}, one per row.")
    if end is not None and (np.shape(end) != (B,) or (np.asarray(end) < known).any()):
        raise RequestError(
            f"end is {np.asarray(end).tolist()}; expected {B} numbers, how long the whole text of each row is."
        )
    return read_prompts(params, tokens, lengths, state, end, config=config)


def decode(
    params: Params, state: State, sampling: Sampling, seeds: jax.Array | np.ndarray, *, config: ModelConfig, steps: int
) -> tuple[jax.Array, jax.Array, State]:
    """Write `steps` tokens per row.  sampling from Sampling.rows, seeds [B] uint32 -> tokens [B n], logprobs [B n], State

    The state is used up: take the returned one. Rows do not stop by themselves. Raises RequestError for tokens past
    the cache's capacity, and for those with which a text outgrows longrope's original length: all of it is read otherwise then.
    """
    steps = check_count("steps", steps)
    check_room(state.cache, np.zeros((state.cache.batch, 1), np.int32), steps, config)
    switch = config.switch_length
    if switch is not None and not isinstance(state.cache.length, jax.core.Tracer):
        length = whole(state.cache.length)
        if ((length <= switch) & (length + steps > switch)).any():
            raise RequestError(
                f"{steps} more tokens lead a text past longrope's original length of {switch}, beyond which all of it is "
                "turned otherwise: decode up to there, and prefill the whole text anew."
            )
    return write_tokens(params, state, sampling, seeds, config=config, steps=steps)


@program(donate=("state",))
def read_prompts(
    params: Params, tokens: jax.Array, count: jax.Array, state: State, end: jax.Array | None = None, *, config: ModelConfig
) -> State:  # fmt: skip
    """prefill, compiled and unchecked: one piece of each row's prompt.  tokens [B T], count [B], 0 where a row has no more

    Logits are computed at each row's last real token only, and stay as they are where it has none.
    """
    x, cache = model.hidden_states(params, tokens, count, state.cache, config=config, end=end)
    last = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[:, None, None], axis=1)
    logits = jnp.where((count > 0)[:, None], model.logits(params, last, config)[:, 0], state.logits)
    return State(logits, cache, smp.read(state.past, tokens, count))


@program(static=("steps",), donate=("state",))
def write_tokens(
    params: Params, state: State, sampling: Sampling, seeds: jax.Array, *, config: ModelConfig, steps: int
) -> tuple[jax.Array, jax.Array, State]:
    """decode, compiled and unchecked: past the cache's capacity nothing is written, and the tokens mean nothing.

    One lax.scan: draw a token from the logits, run it through the model, carry the new logits and the longer cache.
    """

    def step(state: State, _: None) -> tuple[State, tuple[jax.Array, jax.Array]]:
        token, logprob = smp.draw(state.logits, sampling, state.past, seeds, state.cache.length)
        x, cache = model.hidden_states(params, token[:, None], jnp.ones_like(token), state.cache, config=config)
        return State(model.logits(params, x, config)[:, 0], cache, smp.remember(state.past, token)), (token, logprob)

    state = dataclasses.replace(state, cache=dataclasses.replace(state.cache, fresh=False))
    state, (tokens, logprobs) = jax.lax.scan(step, state, length=steps)
    return tokens.T, logprobs.T, state
