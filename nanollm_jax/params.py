"""The parameters: one weight for each path of layout.py, an array or what a dtype keeps in place of a large matrix.

Made at random or of the numbers of a file, put into a tree and taken out of it. What layout.py says of
them has its names here too; it stands apart because it needs no arrays, and so no jax.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.config import ModelConfig
from nanollm_jax.dtypes import DTYPES, Dtype, resolve_weights
from nanollm_jax.errors import CheckpointError
from nanollm_jax.executables import Persistent
from nanollm_jax.layout import adaptable as adaptable
from nanollm_jax.layout import count as count
from nanollm_jax.layout import large_matrices, outputs, shapes
from nanollm_jax.layout import layout as layout
from nanollm_jax.layout import nbytes as nbytes
from nanollm_jax.ops import groupwise_making, int8
from nanollm_jax.ops.adapted import Adapted
from nanollm_jax.ops.kept import Weight, name_of
from nanollm_jax.ops.reordered import Reordered

per_output, per_group = Persistent(int8.quantize), Persistent(groupwise_making.quantize)
as_published = Persistent(jax.jit(groupwise_making.groupwise, static_argnames=("bits", "dtype", "table")))


def int4(array: jax.Array, outputs: int) -> Weight:
    """In groups that each device of a mesh has whole."""
    traced = isinstance(array, jax.core.Tracer)
    bits, group = DTYPES["int4"].groups((array.shape if traced else array.sharding.shard_shape(array.shape))[-1])
    return per_group(array, bits=bits, group=group, divided=not traced and len(array.sharding.device_set) > 1)


# by the name of a dtype, what it makes of a large matrix [*O *I] that has so many axes of outputs; others keep the array
MAKERS: dict[str, Callable[..., Weight]] = {"int8": per_output, "int4": int4}

Params = dict[str, Any]
Parts = Callable[[int], Iterator[tuple[tuple[int, ...], jax.Array]]]  # by how many axes count outputs
Filler = Callable[[tuple[int, ...], Parts], Weight]


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = "auto") -> Params:
    """Random weights of the right shapes, biases and norm scales included, so that no parameter goes unnoticed in a test.

    Matrices are normal with deviation 1/sqrt(inputs); scales 1 + 0.1 normal; biases 0.1 normal. Each array depends on
    the key and on its own path only. dtype "int8" or "int4" is as in load. Raises ConfigError for an unknown dtype.
    """
    kept, letters = resolve_weights(dtype), layout(config)
    keep = keeper(config, kept)
    flat = {}
    for path, shape in shapes(config).items():
        mean = 1.0 if path.rpartition(".")[2] == "scale" else 0.0
        before = outputs(path, letters[path])
        deviation = 0.1 if before is None else math.prod(shape[before:]) ** -0.5
        array = draw(
            jax.random.fold_in(key, zlib.crc32(path.encode())), mean, deviation, shape=shape, dtype=kept.activations
        )
        flat[path] = keep(path, array)
    return nest(flat)


def keeper(config: ModelConfig, dtype: Dtype) -> Callable[[str, jax.Array], Weight]:
    """What becomes of each parameter, by its path: the array itself, or of a large matrix what the dtype keeps."""
    make, large = MAKERS.get(dtype.name), large_matrices(config)

    def keep(path: str, array: jax.Array) -> Weight:
        return array if make is None or path not in large else jax.block_until_ready(make(array, outputs=large[path]))

    return keep


def fillers(config: ModelConfig, dtype: Dtype) -> dict[str, Filler]:
    """What makes of each large matrix the same as keeper, a part after the other, of which one is there in more bits."""
    large = large_matrices(config) if dtype.name in MAKERS else {}
    return {path: filler(dtype, outputs) for path, outputs in large.items()}


def filler(dtype: Dtype, outputs: int) -> Filler:
    """What makes a weight in few bits of its shape, and of its parts: whole along the inputs, and where each begins."""
    return partial(filled, dtype, outputs)


def filled(dtype: Dtype, outputs: int, shape: tuple[int, ...], parts: Parts) -> Weight:
    """The weight of filler."""
    weight = blank(shape=shape, plain=dtype.plain, name=dtype.name, outputs=outputs)
    for begin, part in parts(outputs):
        weight = jax.block_until_ready(put(weight, part, np.array(begin, np.int32), name=dtype.name, outputs=outputs))
    return weight


@Persistent
@partial(jax.jit, static_argnames=("shape", "plain", "name", "outputs"))
def blank(*, shape: tuple[int, ...], plain: str, name: str, outputs: int) -> Weight:
    """Zeros in few bits, and never in more."""
    form = jax.eval_shape(partial(MAKERS[name], outputs=outputs), jax.ShapeDtypeStruct(shape, plain))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form)


@Persistent
@partial(jax.jit, static_argnames=("name", "outputs"), donate_argnums=0)
def put(weight: Weight, part: jax.Array, begin: jax.Array, *, name: str, outputs: int) -> Weight:
    """The weight with this part of it rounded to few bits, in its place."""
    at = lambda whole: [begin[axis] if axis < len(begin) else 0 for axis in range(whole.ndim)]  # noqa: E731
    change = lambda whole, new: jax.lax.dynamic_update_slice(whole, new, at(whole))  # noqa: E731
    return jax.tree.map(change, weight, MAKERS[name](part, outputs=outputs))


def few(numbers: Any, scale: Any, offset: Any, order: Any = None, *, bits: int, table: Any, dtype: Any) -> Weight:
    """A weight in the few bits that it was published in: see groupwise_making.groupwise, and for an order reordered.py."""
    made = as_published(numbers, scale, offset, bits=bits, dtype=np.dtype(dtype), table=table)
    return jax.block_until_ready(made if order is None else Reordered(made, jnp.asarray(order)))


def forms(config: ModelConfig, dtype: Dtype) -> dict[str, Any]:
    """{path: what keeper makes of each parameter}, shapes and dtypes in place of arrays."""
    make, large = MAKERS.get(dtype.name), large_matrices(config)

    def form(path: str, shape: tuple[int, ...]) -> Any:
        array = jax.ShapeDtypeStruct(shape, dtype.activations)
        return array if make is None or path not in large else jax.eval_shape(partial(make, outputs=large[path]), array)

    return {path: form(path, shape) for path, shape in shapes(config).items()}


def named(flat: dict[str, Any]) -> dict[str, Any]:
    """{path: weight} -> {name: array}: "layers.3.attention.wo", or of one that is no array "layers.3.attention.wo.values" .."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(flat)
    return {jax.tree_util.keystr(keys, simple=True, separator="."): leaf for keys, leaf in leaves}


def dtype_of(params: Params) -> Dtype:
    """The dtype that parameters are in, as the table of tokens has it."""
    table = params["embedding"]["tokens"]
    plain = np.dtype(table.dtype).name
    return resolve_weights(name if (name := name_of(table)) in DTYPES else plain, auto=plain)


def names(params: Params, config: ModelConfig) -> list[str]:
    """How the large matrices are kept, each way once: "float32", "int4"."""
    flat = flatten(params)
    return sorted({name_of(flat[path]) for path in large_matrices(config)})


def nbytes_kept(params: Params) -> dict[str, int]:
    """{path: bytes} of every weight as it is kept, whatever others are, without the adapters beside it."""
    bases = {path: weight.base if isinstance(weight, Adapted) else weight for path, weight in flatten(params).items()}
    return {path: weight.nbytes for path, weight in bases.items()}


def for_rows(params: Any, which: jax.Array) -> Any:
    """Parameters for B rows, of which each takes the adapter of its number, 0 for none.  which [B] int32"""
    return changed(params, lambda weight: replace(weight, which=which))


def only(params: Any, number: int) -> Any:
    """Parameters with one adapter, which every row takes; number 0 is none."""
    one = slice(number, number + 1)
    stacks = lambda weight: (weight.a, weight.b, weight.gain)  # noqa: E731
    return changed(params, lambda weight: Adapted(weight.base, *jax.tree.map(lambda x: x[one], stacks(weight))))


def adapted(params: Params) -> bool:
    """Are there adapters beside any of these weights?"""
    return any(isinstance(weight, Adapted) for weight in flatten(params).values())


def changed(params: Any, change: Callable[[Adapted], Adapted]) -> Any:
    """A tree with every adapted weight in it changed."""
    adapted = lambda node: isinstance(node, Adapted)  # noqa: E731
    return jax.tree.map(lambda node: change(node) if adapted(node) else node, params, is_leaf=adapted)


@Persistent
@partial(jax.jit, static_argnames=("shape", "dtype"))
def draw(key: jax.Array, mean: float, deviation: float, *, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """One normal array, drawn in float32 and rounded once. Compiled once per shape."""
    return (mean + deviation * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def nest(flat: dict[str, Any]) -> Params:
    """{path: array} -> the tree, with params["layers"] a tuple of one dict per layer."""
    tree: Params = {}
    for path, weight in flat.items():
        *rooms, name = path.split(".")
        reduce(lambda branch, room: branch.setdefault(room, {}), rooms, tree)[name] = weight
    return {**tree, "layers": tuple(tree["layers"][str(layer)] for layer in range(len(tree["layers"])))}


def flatten(params: Params) -> dict[str, Any]:
    """The tree -> {path: weight}; the inverse of nest."""

    def under(branch: Any, path: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(branch, dict):
            yield path, branch
            return
        for name, below in branch.items():
            yield from under(below, f"{path}.{name}" if path else str(name))

    return dict(under({**params, "layers": dict(enumerate(params["layers"]))}, ""))


def check_params(params: Params, config: ModelConfig, sizes: dict[str, int] | None = None) -> None:
    """Raise CheckpointError unless the tree has exactly the parameters of layout(config), in their shapes."""
    if not isinstance(params, dict) or not isinstance(params.get("layers"), tuple | list):
        raise CheckpointError(
            f"params is {type(params).__name__} without a tuple of layers; expected a tree as init_params makes it."
        )
    found = {path: np.shape(array) for path, array in flatten(params).items()}
    expected = shapes(config, sizes)
    wrong = [f"{path}: found {found.get(path)}, expected {expected.get(path)}"
             for path in sorted(found | expected) if found.get(path) != expected.get(path)]  # fmt: skip
    if wrong:
        raise CheckpointError(f"{len(wrong)} parameters do not match the config: {'; '.join(wrong[:8])}.")
