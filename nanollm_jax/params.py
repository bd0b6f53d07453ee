"""The parameters: one string of axis letters each, from which shape, initialiser, count and checkpoint rule follow.

    B batch rows     T new tokens in this call    S cache slots      L layers
    D model width    V vocabulary                 P learned positions
    N query heads    K key/value heads            G = N / K          H head width
    F MLP width      E experts                    M width of one expert
    Q = G + 2: the query heads of one key/value head, then its key and its value
    U = 2: gate and up, or 1 in a model without a gate

Each is one array, or one Int8 in its place. Weights are stored outputs first. What is multiplied by the same vector lies
in one array, cut where it also divides among devices: wqkv [K Q H D] along K, up [U F D] along F.
A path such as "layers.3.attention.wo" names one array in the tree: params["layers"][3]["attention"]["wo"].
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

from nanollm_jax.config import ModelConfig, resolve_weights
from nanollm_jax.errors import CheckpointError, ConfigError
from nanollm_jax.ops.int8 import Int8, quantize

Params = dict[str, Any]


def layout(config: ModelConfig) -> dict[str, str]:
    """Which parameters a model has: {path: axis letters}. The one place where that is decided."""
    norm = {"scale": "D"} | ({"bias": "D"} if config.norm == "layer_norm" else {})
    attention: dict[str, Any] = {"wqkv": "K Q H D", "wo": "D N H"}
    if config.qkv_bias:
        attention |= {"bqkv": "K Q H"}
    if config.attention_out_bias:
        attention |= {"bo": "D"}
    if config.qk_norm is not None:
        whole = config.qk_norm == "width"
        attention |= {"q_norm": {"scale": "N H" if whole else "H"}, "k_norm": {"scale": "K H" if whole else "H"}}
    mlp = {"up": "U F D", "down": "D F"}
    if config.mlp_bias:
        mlp |= {"up_bias": "U F", "down_bias": "D"}
    experts = {"router": "E D", "up": "E U M D", "down": "E D M"}
    norms = {f"{half}_norm": norm for half in ("attention", "mlp") if config.pre_norm}
    norms |= {f"{half}_post_norm": norm for half in ("attention", "mlp") if config.post_norm}
    dense = set(config.dense_layers) if config.num_experts else set(range(config.num_layers))
    tree = {
        "embedding": {"tokens": "V D"} | ({"positions": "P D"} if config.learned_positions else {}),
        "layers": {
            str(layer): norms | {"attention": attention, "mlp": mlp if layer in dense else experts}
            for layer in range(config.num_layers)
        },
        "final_norm": norm,
        "unembedding": {} if config.tie_embeddings else {"tokens": "V D"},
    }
    return traverse_util.flatten_dict(tree, sep=".")


def shapes(config: ModelConfig, sizes: dict[str, int] | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter: {path: sizes}, with the config's own sizes or others. Allocates nothing."""
    sizes = config.sizes if sizes is None else sizes
    return {path: tuple(sizes[letter] for letter in letters.split()) for path, letters in layout(config).items()}


def count(config: ModelConfig) -> int:
    """How many numbers the model has, tied embeddings counted once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def nbytes(
    config: ModelConfig, itemsize: int, in_8_bits: bool = False, sizes: dict[str, int] | None = None
) -> dict[str, int]:
    """{path: bytes in memory} of numbers of itemsize bytes each; of what is kept in 8 bits, with its float32 scales.

    sizes: how long each axis letter is, where it is not the config's own. Raises ConfigError where the model cannot be
    kept in 8 bits.
    """
    eight, found = paths_in_8_bits(config) if in_8_bits else set(), {}
    for path, shape in shapes(config, sizes).items():
        scales = 4 * math.prod(shape[: outputs(path, len(shape))])
        found[path] = math.prod(shape) + scales if path in eight else itemsize * math.prod(shape)
    return found


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


def outputs(path: str, axes: int) -> int:
    """How many of a matrix's axes count outputs; its inputs are the others: two of "wo", "D N H", one of any other."""
    return 1 if path.endswith(".wo") else axes - 1


def keeper(config: ModelConfig, in_8_bits: bool) -> Callable[[str, jax.Array], jax.Array | Int8]:
    """What becomes of each parameter, by its path: the array itself, or of matrices and tables of tokens 8 bits.

    Raises ConfigError where the model cannot be kept in 8 bits.
    """
    eight = paths_in_8_bits(config) if in_8_bits else set()

    def keep(path: str, array: jax.Array) -> jax.Array | Int8:
        return jax.block_until_ready(quantize(array, outputs(path, array.ndim))) if path in eight else array

    return keep


def paths_in_8_bits(config: ModelConfig) -> set[str]:
    """The matrices and tables of tokens, which are nearly all of a model.

    Raises ConfigError for experts: there is no product by groups for 8 bits.
    """
    if config.num_experts:
        raise ConfigError("dtype int8 is not there for mixtures of experts; take bfloat16.")
    return {path for path in layout(config) if path.rpartition(".")[2] in ("wqkv", "wo", "up", "down", "tokens")}


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
