"""What an engine had to read to write, and how fast this machine reads: how near a step is to the limit that memory sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

import jax

from nanollm_jax.config import ModelConfig
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.rows import Event
from nanollm_jax.glass.texts import own_config
from nanollm_jax.loading import Model
from nanollm_jax.measure.roofline import part_bytes, read_rate
from nanollm_jax.params import nbytes_kept

Weights = tuple[tuple[str, int], ...]  # bytes of each as it is kept, by path


def bytes_of(engine: Engine, events: Sequence[Event]) -> int:
    """Bytes that the chunks among the events of a step had to read: weights once for each of their steps, and what is in sight.

    Of rows that ended in it what they held is not counted, nor what pieces of prompts read: those compute rather than read.
    """
    read, model = 0.0, engine.model
    weights = tuple(nbytes_kept(model.params).items())
    for _, _, rows, steps in (event for event in events if event.what == "chunk"):
        held = [slot.filled for slot in engine.slots if slot.ticket is not None][:rows]
        read += steps * step_bytes(own_config(model), model.dtype.name, weights, rows, tuple(held))
    return round(read)


def step_bytes(config: ModelConfig, dtype: str, weights: Weights, rows: int, held: tuple[int, ...]) -> float:
    """roofline.step_bytes of rows that hold so many positions each."""
    fixed, vector, windows = fixed_bytes(config, dtype, weights, rows)
    seen = sum(count * min(positions + 1, window) for positions in held for window, count in windows)
    return fixed + vector * seen


@cache
def fixed_bytes(
    config: ModelConfig, dtype: str, weights: Weights, rows: int
) -> tuple[float, float, tuple[tuple[int, int], ...]]:
    """Of a step of so many rows: bytes of weights, states and new keys and values; those of one position in the cache of one
    layer that looks at some; and how many layers look at how many positions.
    """
    windows = Counter(layer.window or config.max_positions for layer in config.layers if layer.attends)
    one, two = (sum(part_bytes(config, rows, length, dtype, dict(weights)).values()) for length in (0, 1))
    wider = sum(count for window, count in windows.items() if window > 1)  # layers that see one position more
    vector = (two - one) / (rows * wider) if wider else 0.0
    return one - vector * rows * windows.total(), vector, tuple(windows.items())


def limit(model: Model) -> float | None:
    """Bytes per second that the devices of a model read; None where there is no room to measure it."""
    return read_limit(1 if model.mesh is None or jax.default_backend() == "cpu" else model.mesh.size)


@cache
def read_limit(devices: int) -> float | None:
    """The rate of so many devices, of one that is measured once."""
    try:
        return devices * read_rate()
    except (jax.errors.JaxRuntimeError, MemoryError):
        return None
