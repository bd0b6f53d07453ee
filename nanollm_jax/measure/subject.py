"""What is measured, and on which machine: a model as a source names it, prompts of random ids, figures with their spread."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nanollm_jax
from nanollm_jax import files, layout
from nanollm_jax import params as parameters
from nanollm_jax.dtypes import is_auto, resolve_weights
from nanollm_jax.errors import RequestError
from nanollm_jax.families import read_config
from nanollm_jax.loading import Model, load
from nanollm_jax.weights.pages import in_large_pages
from nanollm_jax.weights.source import find_shape, read_json


def name_of(dtype: Any) -> str:
    """A dtype's own name, as another process can be told it; "auto" stays, by which weights in few bits do. Raises ConfigError
    for one that weights cannot have.
    """
    return "auto" if is_auto(dtype) else resolve_weights(dtype).name


def open_model(source: str | None, revision: str | None, dtype: Any) -> Model:
    """A checkpoint, or a config file with random weights, which no tokenizer goes with. All weights on their device."""
    file = find_shape(source, revision)
    if file is not None:
        config, _ = read_config(read_json(file), str(file))
        leaves, tree = jax.tree.flatten(parameters.init_params(config, jax.random.key(0), dtype))
        for at, leaf in enumerate(leaves):  # as a checkpoint's lie, one by one: nothing is there twice
            leaves[at] = in_large_pages(leaf)
        model = Model(config, jax.tree.unflatten(tree, leaves))
    else:
        model = load(source, revision=revision, dtype=dtype)
    jax.block_until_ready(model.params)
    return model


def check_fits(model: Model, rows: int, capacity: int) -> None:
    """Raise RequestError for more positions than the model has, or more bytes than the device's memory has."""
    config, itemsize = model.config, model.dtype.activations.itemsize
    if capacity > config.max_positions:
        raise RequestError(
            f"prompt and new tokens need {capacity} positions a row; this model has {config.max_positions}: take fewer."
        )
    row = sum(layout.row_nbytes(config, capacity, itemsize))
    stats = jax.devices()[0].memory_stats()
    memory = stats["bytes_limit"] if stats else files.host_memory()
    if memory is None:
        return
    room = memory - model.nbytes
    if rows * row > room:
        raise RequestError(
            f"{rows} rows of {capacity} positions need {rows * row / 1e9:.1f} GB beside the weights; the device has "
            f"{room / 1e9:.1f} GB: take {max(room // row, 0)} rows or fewer."
        )


def prompt(model: Model, rows: int, length: int, seed: int = 0) -> np.ndarray:
    """The same random ids on every call.  -> [rows length] int32"""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (rows, length), dtype=np.int32)


def summary(values: list[float]) -> dict[str, Any]:
    """The median, the extremes and every sample."""
    return {
        "median": statistics.median(values), "lowest": min(values), "highest": max(values), "samples": values,
    }  # fmt: skip


def describe(model: Model, source: str | None) -> dict[str, Any]:
    """Which model was measured."""
    return {
        "source": source or "the bundled model", "parameters": model.num_parameters, "bytes": model.nbytes,
        "dtype": " and ".join(parameters.names(model.params, model.config)),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """Which machine and versions a figure belongs to."""
    cpu, file = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if file.exists():
        names = [
            line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    device = jax.devices()[0]
    return {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device.device_kind, "devices": jax.device_count(), "python": platform.python_version(),
        "jax": jax.__version__, "nanollm_jax": nanollm_jax.__version__,
    }  # fmt: skip
