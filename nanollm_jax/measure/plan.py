"""What a model needs on a mesh and how fast it can be at best: closed forms of shapes. Nothing is allocated or compiled.

Decoding a token reads the weights and the filled cache once, so memory's bandwidth bounds it; reading a prompt multiplies
every weight with every token, so arithmetic bounds it. A real run stays below both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from nanollm_jax import files, layout
from nanollm_jax.checks import check_count
from nanollm_jax.config import ModelConfig
from nanollm_jax.dtypes import check_kept, resolve_weights
from nanollm_jax.errors import ConfigError, RequestError
from nanollm_jax.measure import roofline
from nanollm_jax.partition import RULE, arrange, stored_sizes

VOCABULARIES = 5  # arrays [B V] float32 that sampling has at the same time; what a layer needs fits in their place


@dataclass(frozen=True)
class Device:
    """What the maker says of one device: memory in bytes, bandwidth in bytes/s, dense bfloat16 arithmetic in FLOP/s."""

    memory: float
    bandwidth: float
    flops: float


# From the makers' data sheets: SXM boards, dense figures; a TPU's are per chip.
DEVICES = {
    "a100": Device(80e9, 2.039e12, 312e12),
    "h100": Device(80e9, 3.35e12, 989e12),
    "h200": Device(141e9, 4.8e12, 989e12),
    "v5e": Device(16e9, 0.819e12, 197e12),
    "v5p": Device(95e9, 2.765e12, 459e12),
    "v6e": Device(32e9, 1.64e12, 918e12),
}


@dataclass(frozen=True)
class Plan:
    """Bytes of one device, and what one decode step of all rows moves and computes there.

    weights, cache, and what of both is padding: zeros and second copies of heads, because tp does not divide them
    (partition.py); and the rest: the logits of the rows, their history and their sampling settings (state), and what a
    decode step needs beside them (temporaries). read are the bytes of the weights that a step reads, products the FLOPs of
    every row's `block` tokens, one and those that are guessed, against them, attention those against a full cache and states;
    again are bytes of the cache that a step reads another time, in layers that look at another's keys.
    """

    weights: int
    cache: int
    padding: int
    state: int
    temporaries: int
    read: float
    products: float
    attention: float
    rows: int
    block: int = 1
    again: int = 0

    @property
    def total(self) -> int:
        """All bytes of one device."""
        return self.weights + self.cache + self.state + self.temporaries

    def decode_limit(self, device: Device) -> float:
        """Tokens per second of all rows together, at most: bandwidth, or arithmetic where many rows share a weight."""
        seconds = max(
            (self.read + self.cache + self.again) / device.bandwidth, (self.products + self.attention) / device.flops
        )
        return self.rows / seconds

    def prefill_limit(self, device: Device) -> float:
        """Prompt tokens per second of all rows together, at most, attention's own products left out."""
        return self.rows * self.block * device.flops / self.products


def make_plan(
    config: ModelConfig,
    *,
    dp: int = 1,
    tp: int = 1,
    batch: int = 1,
    context: int | None = None,
    dtype: Any = "bfloat16",
    drafts: int = 0,
    cache: str = "auto",
    few: Mapping[str, int] = MappingProxyType({}),
) -> Plan:
    """What one device of a dp x tp mesh holds and does for `batch` rows of up to `context` positions (None: the model's).

    dtype is that of weights and cache; "int8" and "int4" are matrices in 8 or 4 bits, the rest in bfloat16. drafts is how
    many tokens of a step are guessed: it takes them all, and its limit counts none, as if no guess were right. cache is how
    keys and values are kept, as in load. few has the bytes of parameters that are in few bits of another form, by path, as
    sources.nbytes_of_few tells those of a checkpoint. Raises ConfigError for an unknown dtype or cache, RequestError for rows
    that dp does not divide, for more positions than the model has, and for drafts where recurrent layers take nothing back.
    """
    context = config.max_positions if context is None else context
    dp, tp = check_count("dp", dp), check_count("tp", tp)
    batch, context = check_count("batch", batch), check_count("context", context)
    T = 1 + drafts
    if batch % dp:
        raise RequestError(
            f"batch {batch} is not a multiple of dp={dp}; take {dp * -(-batch // dp)}, as generate fills it up."
        )
    if context > config.max_positions:
        raise RequestError(f"context {context} is more than the model's {config.max_positions} positions.")
    if drafts:
        layout.check_goes_back(config)
    model, config = config, arrange(config, tp)
    kept, kept_cache = resolve_weights(dtype, auto="bfloat16"), check_kept(cache)
    itemsize = kept.activations.itemsize
    sizes = stored_sizes(config, tp)
    own = {letter: length // (tp if RULE.get(letter) == "tp" else 1) for letter, length in sizes.items()}
    rows, V = batch // dp, config.vocab_size
    slots = layout.cache_slots(config, context, drafts)
    heads = [(config.heads_of(layer), slots[at if layer.keeps else layer.keys_of or 0] if layer.attends else 0)
             for at, layer in enumerate(config.layers)]  # fmt: skip
    looked = sum(one.num_heads * one.head_dim * seen for one, seen in heads)
    whole = layout.shapes(model)

    def weighed(of: ModelConfig, of_sizes: dict[str, int]) -> dict[str, int]:
        """{path: bytes} of all parameters where axes are so long."""
        part = {path: math.prod(shape) / math.prod(whole[path]) for path, shape in layout.shapes(of, of_sizes).items()}
        return layout.nbytes(of, kept, of_sizes) | {path: round(size * part[path]) for path, size in few.items()}

    shapes, stored = layout.shapes(config, own), weighed(config, own)
    multiplied = sum(roofline.used_weights(config, config.experts_per_token, own).values())
    read = roofline.used_weights(config, roofline.experts_read(config, rows * T), own)
    filled, state = (rows * part for part in layout.row_nbytes(config, context, itemsize, tp, drafts, kept_cache))
    how = config, context, itemsize, tp, drafts, kept_cache
    once, everywhere = layout.layer_nbytes(*how, again=False), layout.layer_nbytes(*how, again=True)
    needed_cache, _ = layout.row_nbytes(model, context, itemsize, 1, drafts, kept_cache)
    held, needed = (sum(weighed(of, of_sizes).values()) for of, of_sizes in ((config, sizes), (model, model.sizes)))
    return Plan(
        weights=sum(stored.values()),
        cache=filled,
        padding=round((held - needed) / tp + filled - rows * needed_cache / tp),
        state=state,
        temporaries=rows * V * 4 * VOCABULARIES,
        read=sum(stored[path] * used / math.prod(shapes[path]) for path, used in read.items()),
        products=2.0 * multiplied * rows * T,
        # of every query head with the keys in each slot, and with the values
        attention=4.0 * rows * looked / tp * T
        + rows * T / tp * sum(one.mixer.flops for one in config.layers if one.mixer),
        rows=batch,
        block=T,
        again=rows * (sum(everywhere) - sum(once)),
    )


def device(name: str) -> Device:
    """The device of this name; "cpu" is this machine's, measured now. Raises ConfigError naming all that are known."""
    if name == "cpu":
        if (memory := files.host_memory()) is None:
            raise ConfigError(f"this system does not say how much memory it has; name a device: {', '.join(DEVICES)}.")
        return Device(memory, roofline.read_rate(), roofline.product_rate(np.float32))
    if name not in DEVICES:
        raise ConfigError(f"device {name!r} is not known; known: {', '.join(DEVICES)}, cpu.")
    return DEVICES[name]
