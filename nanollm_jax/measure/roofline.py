"""What a model's mathematics needs, and what this machine can do: the two sides that speed is judged by.

    bytes        that have to be moved for a step of decode, whatever the program moves on top
    FLOPs        of the matrix products of a prefill, whatever the program computes on top
    reading      bytes per second of the sum of a large array
    arithmetic   FLOP per second of a large matrix product, float32 in full precision

Both rates are those of the device that runs the model, with all its cores. Only measuring them needs jax.
Williams, Waterman & Patterson 2009, "Roofline: An Insightful Visual Performance Model for Multicore Architectures".
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from nanollm_jax import layout
from nanollm_jax.config import ModelConfig
from nanollm_jax.dtypes import resolve_weights

# bytes of the array, width of the matrices: beyond a CPU's caches; on others long enough that the call does not count
SIZES = {"cpu": (2**28, 2048)}
LARGE = (2**31, 8192)
CALLS = 4
OWNERS = {"attention": "attention", "recurrent": "recurrent", "mlp": "mlp", "input": "mlp", "inputs": "embedding"}
NONE: Mapping[str, int] = MappingProxyType({})
CHOOSING = ("router", "router_bias", "correction", "expert_scale")  # of experts


def step_bytes(config: ModelConfig, rows: int, length: int, dtype: Any, weights: Mapping[str, int] = NONE) -> int:
    """Bytes that decode has to move for one more token in each of `rows` rows that hold `length` positions.

    Every weight once (of an embedding that is only looked up, one vector per row), the keys and values in sight, and
    the new ones, states twice. Of experts as many as are expected where all are chosen alike. dtype: a name, or a row of
    dtypes.py. weights: their bytes as they are kept, by path, where
    that is not in dtype (params.nbytes_kept).
    """
    return round(sum(part_bytes(config, rows, length, dtype, weights).values()))


def part_bytes(
    config: ModelConfig, rows: int, length: int, dtype: Any, weights: Mapping[str, int] = NONE
) -> dict[str, float]:
    """step_bytes by the parts that a trace has: attention, recurrent and mlp are their weights, norm all norms', logits the
    table that the vocabulary is scored with, embedding the vectors that are looked up and what layers are told of them, cache
    keys, values and states.
    """
    kept = resolve_weights(dtype)
    used, sizes = used_weights(config, experts_read(config, rows)), layout.shapes(config)
    stored = layout.nbytes(config, kept) | dict(weights)
    # what is in sight, of another layer too, and one more that is written
    seen = [
        min(length + 1, layer.window or length + 1) + layer.keeps if layer.attends else 0 for layer in config.layers
    ]
    heads = list(map(config.heads_of, config.layers))
    numbers = sum(config.vectors * one.num_kv_heads * one.head_dim * n for one, n in zip(heads, seen, strict=True))
    parts = dict.fromkeys(("embedding", "norm", "attention", "recurrent", "cache", "mlp", "logits"), 0.0)
    itemsize = kept.activations.itemsize
    parts["cache"] = rows * itemsize * numbers
    parts["cache"] += rows * 2 * layout.state_nbytes(config, itemsize)  # read and written, all of it
    for path in stored:
        words = path.split(".")
        looked_up = "logits" if path in used else "embedding"
        part = {"tokens": looked_up, "positions": looked_up}.get(words[-1]) or next(
            (OWNERS[word] for word in words if word in OWNERS), "norm"
        )
        share = used[path] / math.prod(sizes[path]) if path in used else rows / sizes[path][0]
        parts[part] += stored[path] * share
    return parts


def prompt_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of the matrix products that read `rows` prompts of `length` tokens and score what follows each.

    Two per weight and token, of the experts those that the token chooses; in attention, two per channel of a key and of a
    value and pair of a query and a key that it sees, a latent's made once; in recurrent layers what their records say.
    """
    used = used_weights(config, config.experts_per_token)
    scored = ("embedding.tokens", "unembedding.tokens")  # of what follows the last token alone
    products = [path for path in used if path not in scored and path.rpartition(".")[2] in layout.INPUTS]
    weights = round(sum(used[path] for path in products))
    recurrent = length * sum(layer.mixer.flops for layer in config.layers if layer.mixer)
    attention = 0
    for layer in config.layers:
        if layer.attends:
            pairs = sum(min(position + 1, layer.window or length) for position in range(length))
            attention += 2 * config.heads_of(layer).num_heads * sum(config.widths(layer)) * pairs
    return rows * (2 * length * weights + attention + recurrent + 2 * config.vocab_size * config.hidden_size)


def experts_read(config: ModelConfig, rows: int) -> float:
    """How many of a layer's experts so many tokens choose together, expected where all are chosen alike."""
    E, k = max(config.num_experts, 1), config.experts_per_token
    return E * (1 - (1 - k / E) ** rows)


def used_weights(config: ModelConfig, experts: float, sizes: dict[str, int] | None = None) -> dict[str, float]:
    """{path: how many of its numbers are used} where so many experts of each layer are; without what is only looked up.

    sizes: how long each axis letter is, where it is not the config's own: what one device of a mesh has.
    """
    whole = config.sizes if sizes is None else sizes
    chosen: dict[str, float] = {**whole, "E": experts}
    looked_up = {"embedding.positions", "inputs.tokens"} | (set() if config.tie_embeddings else {"embedding.tokens"})
    return {  # what chooses is used whole
        path: math.prod((whole if path.rpartition(".")[2] in CHOOSING else chosen)[letter] for letter in axes.split())
        for path, axes in layout.layout(config).items()
        if path not in looked_up
    }


def read_rate() -> float:
    """Bytes per second of summing a large float32 array.

    On CPU the array is NumPy's, which JAX takes as it is when it begins at a multiple of 64 bytes: NumPy asks for huge
    pages and XLA does not, and reading from them is faster (2 cores: 51 instead of 42 GB/s in one run).
    """
    import jax
    import jax.numpy as jnp

    size, _ = SIZES.get(jax.default_backend(), LARGE)
    memory = np.ones(size // 4 + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    array = jax.device_put(memory[first : first + size // 4])
    return size / shortest(lambda: jnp.sum(array))


def product_rate(dtype: Any) -> float:
    """FLOP per second of the product of two large square matrices, accumulated in float32."""
    import jax
    import jax.numpy as jnp

    _, width = SIZES.get(jax.default_backend(), LARGE)
    matrix = jnp.ones((width, width), dtype)
    product = partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)
    return 2 * width**3 / shortest(lambda: product(matrix, matrix))


def shortest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of CALLS calls, after one that compiles: what the machine can do when nothing disturbs it."""
    import jax

    jax.block_until_ready(call())
    seconds = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
