"""What is exported: one program that reads a piece of a text, one that draws a token and runs it. Pure, and arrays alone.

Trees of ours become {name: array}, so that who calls them needs no class of this library: a weight is
"layers.3.attention.wo" (and ".values" and ".scale" of it in 8 bits), a buffer "cache.layers.3.k".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jax.tree_util import keystr, tree_flatten_with_path

from nanollm_jax.cache import init_cache
from nanollm_jax.config import ModelConfig
from nanollm_jax.decode import State, init_state, read_prompts, write_tokens
from nanollm_jax.ops import native
from nanollm_jax.params import Params
from nanollm_jax.settings import Sampling

PLATFORMS = ("cpu", "cuda", "tpu")  # all in one artefact
Named = dict[str, Any]


def named(tree: Any) -> Named:
    """{name: leaf} of any tree."""
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def rebuilt(found: Named, like: Any) -> Any:
    """The tree that `named` was given, of the structure of another."""
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in named(like)])


def read(
    weights: Named, state: Named, tokens: jax.Array, count: jax.Array, end: jax.Array,
    *, params: Params, rows: State, config: ModelConfig,
) -> Named:  # fmt: skip
    """The next piece of a text.  tokens [1 T], count [1] of them real, end [1] how long the whole text is -> state"""
    new = read_prompts(rebuilt(weights, params), tokens, count, rebuilt(state, rows), end, config=config)
    return named(new)


def step(
    weights: Named, state: Named, settings: Named, seed: jax.Array, *, params: Params, rows: State, config: ModelConfig
) -> tuple[jax.Array, jax.Array, Named]:
    """Draw a token, as generate does, and run it.  seed [1] uint32 -> token [1], its logprob [1], state"""
    sampling = rebuilt(settings, Sampling().rows(1, config.vocab_size))
    given = (rebuilt(weights, params), rebuilt(state, rows), sampling, seed)
    tokens, logprobs, new = write_tokens(*given, config=config, steps=1)
    return tokens[:, 0], logprobs[:, 0], named(new)


def empty(params: Params, config: ModelConfig, capacity: int, kept: str = "auto") -> State:
    """The shapes of a state for one text of so many positions. kept: how keys and values are, see init_cache."""

    def made() -> State:
        cache = init_cache(config, 1, capacity, params["embedding"]["tokens"].dtype, kept=kept)
        return init_state(dataclasses.replace(cache, fresh=False), config)

    return jax.eval_shape(made)


def programs(params: Params, config: ModelConfig, rows: State, piece: int) -> dict[str, bytes]:
    """{"read.jax": .., "step.jax": ..}, for such a state and texts that are read in pieces of so many tokens."""
    shape = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)  # noqa: E731
    numbers, fixed = partial(jax.ShapeDtypeStruct, (1,)), {"params": shape(params), "rows": rows, "config": config}
    settings = shape(named(Sampling().rows(1, config.vocab_size)))
    first = (shape(named(params)), shape(named(rows)))
    arguments: dict[Callable[..., Any], Any] = {
        read: (*first, jax.ShapeDtypeStruct((1, piece), jnp.int32), numbers(jnp.int32), numbers(jnp.int32)),
        step: (*first, settings, numbers(jnp.uint32)),
    }
    made = {}
    for function, given in arguments.items():
        with native.portable(True):
            exported = jax_export.export(jax.jit(partial(function, **fixed)), platforms=PLATFORMS)(*given)
        made[f"{function.__name__}.jax"] = bytes(exported.serialize())
    return made
