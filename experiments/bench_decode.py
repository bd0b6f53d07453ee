"""How fast one model reads a prompt and writes tokens on this machine: medians, with compilation left out.

    python experiments/bench_decode.py [MODEL]

MODEL is a checkpoint's folder, a hub id, or a file of configs/, which gets random weights. Default: the bundled model.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import nanollm_jax as nano
from nanollm_jax import params
from nanollm_jax.loading import read_json

PROMPT, NEW, REPEATS = 128, 64, 5  # tokens, tokens, measured runs of each after one that is thrown away


def load(source: str | None) -> nano.Model:
    """A checkpoint, or a config with random weights."""
    if source is None or not source.endswith(".json"):
        return nano.load(source)
    config, _ = nano.read_config(read_json(Path(source)), source)
    return nano.Model(config, nano.init_params(config, jax.random.key(0)))


def measure(model: nano.Model, batch: int) -> tuple[list[float], list[float]]:
    """Seconds of each prefill of [batch PROMPT] tokens, and of each decode of NEW tokens per row."""
    config = model.config
    sampling = nano.Sampling(temperature=0.0).rows(batch, config.vocab_size)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, PROMPT), dtype=np.int32)
    lengths, seeds = np.full(batch, PROMPT, np.int32), np.zeros(batch, np.uint32)
    prefill, decode = [], []
    for _ in range(REPEATS + 1):
        cache = nano.init_cache(config, batch, PROMPT + NEW, model.params["embedding"]["tokens"].dtype)
        begun = time.perf_counter()
        state = jax.block_until_ready(nano.prefill(model.params, tokens, lengths, cache, config=config))
        middle = time.perf_counter()
        jax.block_until_ready(nano.decode(model.params, state, sampling, seeds, config=config, steps=NEW))
        prefill.append(middle - begun)
        decode.append(time.perf_counter() - middle)
    return prefill[1:], decode[1:]


def main() -> None:
    """Print one table."""
    model = load(sys.argv[1] if len(sys.argv) > 1 else None)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    device = jax.devices()[0]
    size = f"{params.count(model.config) / 1e6:.1f}M parameters, {nbytes / 1e6:.0f} MB"
    title = f"{size}, {device.device_kind}, jax {jax.__version__}"
    table = Table("rows", "prefill tok/s", "decode tok/s, all rows", "spread", "weights read GB/s", title=title)
    for batch in (1, 8):
        prefill, decode = measure(model, batch)
        middle = statistics.median(decode)
        table.add_row(
            str(batch), f"{batch * PROMPT / statistics.median(prefill):.0f}", f"{batch * NEW / middle:.1f}",
            f"{batch * NEW / max(decode):.1f} - {batch * NEW / min(decode):.1f}", f"{nbytes * NEW / middle / 1e9:.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
