"""A model as a Flax module, for code that is written in Flax: its parameters are the tree that everything here takes.

import nanollm_jax as nano
from flax import nnx
from nanollm_jax.integrations.flax import Transformer

model = nano.load()
module = Transformer(model.config, model.params)
logits = module(tokens)                                            # of whole texts, as a loss takes them
module.init_cache(batch=1, capacity=128)
logits = module.extend(tokens)                                     # behind what its cache holds, which then holds them too
trained = dataclasses.replace(model, params=module.tree())         # for nano.generate, nano.save ..
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nanollm_jax import model as transformer
from nanollm_jax.cache import KVCache, init_cache
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.mesh import mesh_of
from nanollm_jax.errors import RequestError
from nanollm_jax.params import Params, check_params


class Transformer(nnx.Module):
    """The transformer of model.py with state: nnx.jit, nnx.grad, nnx.state, nnx.split, nnx.Optimizer take it as any module.

    config  the architecture, static
    params  our tree, with an nnx.Param in place of each array: module.params["layers"][3]["attention"]["wo"] [D N H]. The
            whole numbers of a matrix in 8 bits are an nnx.Variable, which has no gradient; others' go through them
    cache   None, or a KVCache with an nnx.Cache in place of each array (init_cache)
    """

    def __init__(self, config: ModelConfig, params: Params) -> None:
        """Raises CheckpointError where config and params do not match, RequestError for parameters on a mesh."""
        if (mesh := mesh_of(params)) is not None:
            raise RequestError(
                f"these parameters are on a mesh of {dict(mesh.shape)}, arranged for shard_map; load them without one, and "
                "place the module's state as Flax does."
            )
        check_params(params, config)
        self.config = config
        self.params = nnx.data(jax.tree.map(variable, params))
        self.cache: Any = nnx.data(None)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Read whole texts; the cache is neither looked at nor changed.  tokens [B T] int32 -> logits [B T V] float32

        Raises RequestError as forward does.
        """
        B, T = tokens.shape
        cache = init_cache(self.config, B, T, dtype_of(self.params))
        return transformer.forward(self.tree(), tokens, cache, config=self.config)[0]

    def init_cache(self, batch: int, capacity: int) -> None:
        """An empty cache in place of what there was, for so many rows of so many positions. Raises as nano.init_cache does."""
        cache = init_cache(self.config, batch, capacity, dtype_of(self.params))
        cache = dataclasses.replace(
            cache, fresh=False
        )  # static, so that the first call is no other program than the next
        self.cache = nnx.data(jax.tree.map(nnx.Cache, cache))

    def extend(self, tokens: jax.Array) -> jax.Array:
        """Read T more tokens of each row behind what the cache holds.  tokens [B T] int32 -> logits [B T V] float32

        Raises RequestError where there is no cache yet, and as forward does; inside nnx.jit the caller sees to the room.
        """
        if self.cache is None:
            raise RequestError("this module has no cache yet; call init_cache(batch, capacity) first.")
        cache: KVCache = arrays(self.cache)
        logits, cache = transformer.forward(self.tree(), tokens, cache, config=self.config)
        for held, array in zip(jax.tree.leaves(self.cache, is_leaf=is_variable), jax.tree.leaves(cache), strict=True):
            held[...] = array
        return logits

    def tree(self) -> Params:
        """The parameters as nano.Model, forward and the others take them: arrays. Of what nnx.merge makes of a state, its."""
        return arrays(self.params)


def variable(array: jax.Array) -> nnx.Variable:
    """What holds one array of the parameters."""
    return (nnx.Param if jnp.issubdtype(array.dtype, jnp.floating) else nnx.Variable)(array)


def is_variable(value: Any) -> bool:
    """Is it one of Flax's?"""
    return isinstance(value, nnx.Variable)


def arrays(tree: Any) -> Any:
    """The tree with each variable's array in its place."""
    return jax.tree.map(lambda held: held[...], tree, is_leaf=is_variable)


def dtype_of(params: Any) -> Any:
    """What activations are in."""
    return arrays(params["embedding"]["tokens"]).dtype
