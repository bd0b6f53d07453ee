"""Many devices: one mesh, one rule from axis letters to it, one shard_map around the same functions.

A mesh has two axes. Rows are split along "dp". Along "tp" every device holds some heads, a part of the MLP and a part of
the vocabulary, and runs the model's own text on them: sizes come from arrays, so nothing there knows that they are parts.

What tp does not divide is made up with zeros, and key/value heads may be repeated, which changes no number that the model
computes (partition.py); rows of the vocabulary that are made up are cut off again before anyone sees a logit.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nanollm_jax import letters as alphabet
from nanollm_jax import model, params
from nanollm_jax.cache import KVCache, check_room
from nanollm_jax.checks import check_count
from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import ConfigError, RequestError
from nanollm_jax.letters import spec
from nanollm_jax.ops.int8 import Int8
from nanollm_jax.params import Params
from nanollm_jax.partition import arrange, sources, stored_sizes

AXES = ("dp", "tp")

Part = Callable[[tuple[slice, ...]], np.ndarray]  # from an index to that part of a parameter


def make_mesh(dp: int = 1, tp: int = 1) -> Mesh:
    """dp x tp devices: rows are split over dp, the model over tp.

    The first dp * tp devices that JAX has, of all processes. Raises ConfigError where there are fewer.
    """
    dp, tp = check_count("dp", dp), check_count("tp", tp)
    found = jax.devices()
    if dp * tp > len(found):
        hint = "; on CPU `nanollm --devices` or jax_num_cpu_devices makes more" if found[0].platform == "cpu" else ""
        raise ConfigError(
            f"a mesh of dp={dp} x tp={tp} needs {dp * tp} devices, found {len(found)}; "
            f"choose sizes whose product is at most {len(found)}{hint}."
        )
    used = found[: dp * tp]
    if idle := jax.process_count() - len({device.process_index for device in used}):
        raise ConfigError(
            f"a mesh of dp={dp} x tp={tp} has no device of {idle} of the {jax.process_count()} processes; "
            f"start fewer, or choose sizes whose product is {len(found)}, the devices that they have."
        )
    return jax.make_mesh((dp, tp), AXES, axis_types=(AxisType.Auto,) * 2, devices=used)


def spread(part: Part, letters: str, dtype: Any, config: ModelConfig, mesh: Mesh) -> jax.Array:
    """One parameter onto its devices, each of which asks for its own part only.

    part(index) gives that part of the parameter as `config`, not arranged, has it, in dtype. Heads are divided and repeated
    here, and what tp does not divide is made up with zeros.
    """
    tp, names = mesh.shape["tp"], letters.split()
    own, sizes = sources(config, tp), stored_sizes(arrange(config, tp), tp)
    shape = tuple(sizes[letter] for letter in names)

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        wanted = {axis: own[name][index[axis]] for axis, name in enumerate(names) if name in own}
        cuts = [around(wanted[axis]) if axis in wanted else slice(0, size) for axis, size in enumerate(shape)]
        if "Q" in names:  # asked for whole: several tensors share it
            query = own["N"].reshape(sizes["K"], sizes["G"])[index[0]]
            found, first = part((cuts[0], slice(0, config.sizes["Q"]), *cuts[2:])), cuts[0].start
            return divide_heads(found, behind(wanted[0], first), behind(query, first * config.sizes["G"]))
        found = part(tuple(cuts))
        for axis, source in wanted.items():
            found = select(found, behind(source, cuts[axis].start), axis)
        return found

    def placed(index: Any) -> np.ndarray:
        return np.ascontiguousarray(piece(index), dtype)

    return jax.make_array_from_callback(shape, NamedSharding(mesh, spec(letters)), placed)


def around(source: np.ndarray) -> slice:
    """The shortest slice that has all of these positions in it; -1 is none of them."""
    there = source[source >= 0]
    return slice(int(there.min()), int(there.max()) + 1) if there.size else slice(0, 0)


def behind(source: np.ndarray, first: int) -> np.ndarray:
    """Positions counted from `first` on; -1 stays."""
    return np.where(source < 0, -1, source - first)


def select(array: np.ndarray, source: np.ndarray, axis: int = 0) -> np.ndarray:
    """These positions of an axis, and zeros for -1; the array itself where they are all that it has."""
    if np.array_equal(source, np.arange(array.shape[axis])):
        return array
    found = np.zeros((*array.shape[:axis], len(source), *array.shape[axis + 1 :]), array.dtype)
    there: Any = (*[slice(None)] * axis, source >= 0)
    found[there] = np.take(array, source[source >= 0], axis)
    return found


def divide_heads(wqkv: np.ndarray, key: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Key/value heads with their queries, cut into shares.  wqkv [k G+2 ...], key [K'], query [K' G'] -> [K' G'+2 ...]

    key says which head each new one is, query which of the k*G queries it serves; -1 is zeros. k = 1, G = 7, G' = 4, key
    (0 0), query (0 1 2 3), (4 5 6 -1): the head (q0 ... q6 k v) becomes (q0 q1 q2 q3 k v) and (q4 q5 q6 0 k v).
    """
    k, Q, *rest = wqkv.shape
    if np.array_equal(query.reshape(query.size), np.arange(k * (Q - 2))):
        return wqkv  # as it is
    queries = select(wqkv[:, :-2].reshape(k * (Q - 2), *rest), query.reshape(query.size))
    return np.concatenate([queries.reshape(*query.shape, *rest), select(wqkv[:, -2:], key)], axis=1)


def shard_params(whole: Params, config: ModelConfig, mesh: Mesh) -> tuple[ModelConfig, Params]:
    """Parameters that are in one place -> the config as the mesh holds it, and the parameters on it.

    For parameters made in memory; load(..., mesh=mesh) never holds the whole. Raises CheckpointError where config and
    parameters do not match.
    """
    arranged = arrange(config, mesh.shape["tp"])
    params.check_params(whole, config)
    letters, flat = params.layout(config), params.flatten(whole)

    def placed(array: Any, axes: str) -> jax.Array:
        array = np.asarray(array)
        return spread(lambda index: array[index], axes, array.dtype, config, mesh)

    return arranged, params.nest({path: by_letters(placed, flat[path], letters[path]) for path in letters})


def by_letters(do: Callable[[Any, str], Any], leaf: Any, letters: str) -> Any:
    """do(array, letters) for one parameter, or for both arrays of one in 8 bits, the scales having its outputs' letters."""
    if not isinstance(leaf, Int8):
        return do(leaf, letters)
    ours = " ".join(letters.split()[: leaf.scale.ndim])
    return dataclasses.replace(leaf, values=do(leaf.values, letters), scale=do(leaf.scale, ours))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that parameters, a cache or a state are on, None without one. Traced arrays do not know theirs: a cache does."""
    for leaf in jax.tree.leaves(tree, is_leaf=knows_mesh):
        mesh = leaf.mesh if knows_mesh(leaf) else None if isinstance(leaf, jax.core.Tracer) else placed_on(leaf)
        if mesh is not None:
            return mesh
    return None


def knows_mesh(tree: Any) -> bool:
    """Does this say itself which mesh it is made for?"""
    return hasattr(tree, "mesh") and not isinstance(tree, jax.Array)


def placed_on(array: Any) -> Mesh | None:
    """The mesh of ours that an array lies on."""
    sharding = getattr(array, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == AXES:
        return sharding.mesh  # type: ignore[return-value]  # of an array it is never abstract
    return None


def specs(tree: Any, config: ModelConfig) -> Any:
    """The PartitionSpec of every leaf, by its letters: parameters have them in their layout, everything else says its own."""
    if isinstance(tree, dict):
        flat, names = params.flatten(tree), params.layout(config)
        return params.nest({path: by_letters(lambda _, axes: spec(axes), flat[path], names[path]) for path in flat})
    return jax.tree.map(spec, alphabet.of(tree))


def on_mesh(tree: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """Arguments of a program, moved to where it expects them; what is there already, parameters above all, is left alone.

    Raises RequestError for rows that dp does not divide, and for a cache that was filled somewhere else.
    """
    if isinstance(tree, dict):
        return tree
    dp = mesh.shape["dp"]

    def ours(leaf: Any) -> Any:
        if knows_mesh(leaf) and leaf.mesh is None:
            traced = isinstance(leaf.length, jax.core.Tracer)
            if not leaf.fresh or (not traced and np.asarray(leaf.length).any()):
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
            return parallelize(partial(function, config=config, **settings), mesh, config)(*args)

        # in traces, logs and the compiled text, the program and its arguments are called as the function's are
        everywhere.__name__ = function.__name__
        mesh_too = inspect.Parameter("mesh", inspect.Parameter.KEYWORD_ONLY)
        everywhere.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*inspect.signature(function).parameters.values(), mesh_too]
        )
        compiled = jax.jit(everywhere, static_argnames=("mesh", "config", *static), donate_argnames=donate)

        @wraps(function)
        def call(*args: Any, **settings: Any) -> Any:
            args, mesh = ready(args, settings["config"])
            return compiled(*args, mesh=mesh, **settings)

        def lower(*args: Any, **settings: Any) -> Any:
            args, mesh = ready(args, settings["config"])
            return compiled.lower(*args, mesh=mesh, **settings)

        call.lower = lower  # type: ignore[attr-defined]  # as a function under jit has it
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
    if mesh_of((cache, params)) is None:
        return model.forward(params, tokens, cache, config=config)
    check_room(cache, tokens, tokens.shape[-1], config)
    return forward_on_mesh(params, tokens, cache, config=config)
