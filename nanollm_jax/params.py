"""The parameters: one array, or one Int8 in its place, for each path of layout.py.

Made at random, put into a tree and taken out of it, and kept in 8 bits where that is asked for. What layout.py says of
them has its names here too; it stands apart because it needs no arrays, and so no jax.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nanollm_jax.config import ModelConfig
from nanollm_jax.dtypes import resolve_weights
from nanollm_jax.errors import CheckpointError
from nanollm_jax.layout import count as count
from nanollm_jax.layout import layout as layout
from nanollm_jax.layout import nbytes as nbytes
from nanollm_jax.layout import outputs, paths_in_8_bits, shapes
from nanollm_jax.ops.int8 import Int8, quantize

Params = dict[str, Any]


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = "auto") -> Params:
    """Random weights of the right shapes, biases and norm scales included, so that no parameter goes unnoticed in a test.

    Matrices are normal with deviation 1/sqrt(inputs); scales 1 + 0.1 normal; biases 0.1 normal. Each array depends on
    the key and on its own path only. dtype "int8" is as in load. Raises ConfigError for an unknown dtype.
    """
    dtype, in_8_bits = resolve_weights(dtype)
    finish = keeper(config, in_8_bits)
    flat = {}
    for path, shape in shapes(config).items():
        name = path.rpartition(".")[2]
        mean = 1.0 if name == "scale" else 0.0
        if len(shape) == 1 or name in ("scale", "bqkv", "up_bias"):
            deviation = 0.1
        else:
            deviation = math.prod(shape[outputs(path, len(shape)) :]) ** -0.5
        array = draw(jax.random.fold_in(key, zlib.crc32(path.encode())), mean, deviation, shape, dtype)
        flat[path] = finish(path, array)
    return nest(flat)


def keeper(config: ModelConfig, in_8_bits: bool) -> Callable[[str, jax.Array], jax.Array | Int8]:
    """What becomes of each parameter, by its path: the array itself, or of matrices and tables of tokens 8 bits."""
    eight = paths_in_8_bits(config) if in_8_bits else set()

    def keep(path: str, array: jax.Array) -> jax.Array | Int8:
        return jax.block_until_ready(quantize(array, outputs(path, array.ndim))) if path in eight else array

    return keep


@partial(jax.jit, static_argnames=("shape", "dtype"))
def draw(key: jax.Array, mean: float, deviation: float, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """One normal array, drawn in float32 and rounded once. Compiled once per shape."""
    return (mean + deviation * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def nest(flat: dict[str, Any]) -> Params:
    """{path: array} -> the tree, with params["layers"] a tuple of one dict per layer."""
    tree = traverse_util.unflatten_dict(flat, sep=".")
    return {**tree, "layers": tuple(tree["layers"][str(layer)] for layer in range(len(tree["layers"])))}


def flatten(params: Params) -> dict[str, Any]:
    """The tree -> {path: array, or Int8}; the inverse of nest."""
    return traverse_util.flatten_dict(
        {**params, "layers": {str(layer): block for layer, block in enumerate(params["layers"])}}, sep="."
    )


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
