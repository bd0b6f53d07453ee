"""One function for one device or many: one rule from axis letters to a mesh, one shard_map around the model's own text.

Sizes come from arrays, so nothing inside knows that it runs on a part. Rows of the vocabulary that were made up for a mesh are
cut off again before anyone sees a logit.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nanollm_jax import letters as alphabet
from nanollm_jax import model, params
from nanollm_jax.cache import KVCache, check_room
from nanollm_jax.config import ModelConfig
from nanollm_jax.devices.mesh import knows_mesh, mesh_of
from nanollm_jax.errors import RequestError
from nanollm_jax.executables import Persistent
from nanollm_jax.letters import pytree, spec, static
from nanollm_jax.ops.kept import letters_of
from nanollm_jax.params import Params


@pytree
class Other:
    """Parameters of another model than the one that a program's config is of, and its config."""

    params: Params
    config: ModelConfig = static()


def specs(tree: Any, config: ModelConfig) -> Any:
    """The PartitionSpec of every leaf, by its letters: parameters have them in their layout, everything else says its own."""
    if isinstance(tree, Other):
        return Other(specs(tree.params, tree.config), tree.config)
    if isinstance(tree, dict):
        flat, names = params.flatten(tree), params.layout(config)
        return params.nest({path: jax.tree.map(spec, letters_of(flat[path], names[path])) for path in flat})
    return jax.tree.map(spec, alphabet.of(tree))


def on_mesh(tree: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """Arguments of a program, moved to where it expects them; what is there already, parameters above all, is left alone.

    Raises RequestError for rows that dp does not divide, and for a cache that was filled somewhere else.
    """
    if isinstance(tree, dict | Other):
        return tree
    dp = mesh.shape["dp"]

    def ours(leaf: Any) -> Any:
        if knows_mesh(leaf) and leaf.mesh is None:
            traced = isinstance(leaf.length, jax.core.Tracer)
            if not getattr(leaf, "fresh", False) or (not traced and np.asarray(leaf.length).any()):
                raise RequestError(
                    "this cache was not made for the mesh that the parameters are on; "
                    "make it with init_cache(..., mesh=model.mesh)."
                )
            return dataclasses.replace(leaf, mesh=mesh)
        return leaf

    def placed(leaf: Any, partition: PartitionSpec) -> Any:
        first = partition[0]
        if leaf.shape[0] % (dp if first == "dp" else mesh.size if first else 1):
            raise RequestError(
                f"an array of {leaf.shape[0]} rows or heads cannot be split over dp={dp}, tp={mesh.shape['tp']}; "
                f"make the rows a multiple of {dp}, and the cache with the model's own config."
            )
        sharding = NamedSharding(mesh, partition)
        if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            return leaf  # the compiler moves it, or there is nothing to move
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        host = np.asarray(leaf)  # of several processes, each has all of it and places its own part
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    tree = jax.tree.map(ours, tree, is_leaf=knows_mesh)
    return jax.tree.map(placed, tree, specs(tree, config))


def parallelize(function: Callable[..., Any], mesh: Mesh | None, config: ModelConfig) -> Callable[..., Any]:
    """The same function on every device of the mesh, each with its rows and its part of the model; as it is without one.

    function takes parameters, caches, states and arrays whose first axis is B; what it returns is split alike.
    """
    if mesh is None:
        return function

    def call(*args: Any) -> Any:
        made = jax.eval_shape(function, *args)  # for its structure: which of the results are caches
        inside = tuple(specs(arg, config) for arg in args)
        return jax.shard_map(function, mesh=mesh, in_specs=inside, out_specs=specs(made, config), check_vma=True)(*args)

    return call


def program(*, static: tuple[str, ...] = (), donate: tuple[str, ...] = ()) -> Callable[..., Any]:
    """A decorator: compile a function of (arrays, *, config, static...), for one device or for the mesh of its arguments.

    static are the names of further keywords that are compiled in, donate those of the arguments that are used up.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def everywhere(*args: Any, mesh: Mesh | None, config: ModelConfig, **settings: Any) -> Any:
            with jax.numpy_dtype_promotion("standard"):  # whatever a caller has chosen for his own text
                return parallelize(partial(function, config=config, **settings), mesh, config)(*args)

        # in traces, logs and the compiled text, the program and its arguments are called as the function's are
        everywhere.__name__ = function.__name__
        mesh_too = inspect.Parameter("mesh", inspect.Parameter.KEYWORD_ONLY)
        everywhere.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*inspect.signature(function).parameters.values(), mesh_too]
        )
        compiled = Persistent(jax.jit(everywhere, static_argnames=("mesh", "config", *static), donate_argnames=donate))

        @wraps(function)
        def call(*args: Any, **settings: Any) -> Any:
            args, mesh = ready(args, settings["config"])
            return compiled(*args, mesh=mesh, **settings)

        def lower(*args: Any, **settings: Any) -> Any:
            args, mesh = ready(args, settings["config"])
            return compiled.lower(*args, mesh=mesh, **settings)

        call.lower, call.clear_cache = lower, compiled.clear_cache  # type: ignore[attr-defined]  # as a function under jit has them
        return call

    return decorate


def ready(args: tuple[Any, ...], config: ModelConfig) -> tuple[tuple[Any, ...], Mesh | None]:
    """A program's arguments where it expects them, and the mesh that it runs on."""
    mesh = mesh_of(args)
    return (args, None) if mesh is None else (tuple(on_mesh(arg, config, mesh) for arg in args), mesh)


forward_on_mesh = program()(model.forward)


@wraps(model.forward)
def forward(params: Params, tokens: jax.Array, cache: KVCache, *, config: ModelConfig) -> tuple[jax.Array, KVCache]:
    """model.forward, compiled and on the mesh of its arguments if they are on one."""
    if not isinstance(params, dict):
        raise RequestError(
            f"params is {type(params).__name__}; expected the tree of a model's parameters, model.params."
        )
    tokens = jnp.asarray(tokens)
    if mesh_of((cache, params)) is None:
        return model.forward(params, tokens, cache, config=config)
    check_room(cache, tokens, tokens.shape[-1], config)
    return forward_on_mesh(params, tokens, cache, config=config)
