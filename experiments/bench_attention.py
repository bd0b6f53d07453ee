"""How long attention of a step of decoding takes: one new token of each row, over a cache in float32 and in 8 bits.

    python experiments/bench_attention.py --rows 1 8 --slots 512 4096 --heads 12 --width 64

Each figure is the best of the rounds, in milliseconds of processor time of a layer: what others do on the machine counts least
there; do not pin it to one core. --xla leaves out what is written in C.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp

import nanollm_jax as nano
from nanollm_jax.cache import advance, extend
from nanollm_jax.ops import native
from nanollm_jax.ops.dot_product import dot_product

LAYERS = 4


def step(cache: nano.KVCache, q: jax.Array, k: jax.Array) -> tuple[nano.KVCache, jax.Array]:
    """Take a token of each row in every layer, and let it look.  q [B 1 N H], k [B 1 K H]"""
    one, found = jnp.ones(q.shape[0], jnp.int32), []
    for layer in range(LAYERS):
        cache, seen = extend(cache, layer, k, k, one)
        found.append(dot_product(q, seen, cache.length[:, None], None, None, None, f"layers.{layer}"))
    return advance(cache, one), jnp.stack(found)


def best(config: nano.ModelConfig, rows: int, slots: int, kept: str, rounds: int) -> float:
    """Milliseconds of a layer, of rows that are nine tenths full."""
    cache = nano.init_cache(config, rows, slots, "float32", kept=kept)
    cache = dataclasses.replace(cache, fresh=False, length=jnp.full(rows, slots * 9 // 10, jnp.int32))
    q, k = (jnp.ones((rows, 1, n, config.head_dim)) for n in (config.num_heads, config.num_kv_heads))
    run, least = jax.jit(step, donate_argnums=0), float("inf")
    for _ in range(rounds + 1):
        begun = time.process_time()
        cache, found = jax.block_until_ready(run(cache, q, k))
        least = min(least, time.process_time() - begun)
    del found
    return 1e3 * least / LAYERS


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--slots", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument(
        "--heads", type=int, nargs="+", default=[12], help="of queries, and of keys where these are fewer"
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--xla", action="store_true")
    asked = parser.parse_args()
    config = nano.ModelConfig(
        vocab_size=32,
        hidden_size=64,
        num_heads=asked.heads[0],
        num_kv_heads=asked.heads[-1],
        head_dim=asked.width,
        intermediate_size=64,
        max_positions=max(asked.slots),
        layers=(nano.LayerConfig(),) * LAYERS,
    )
    print(native.library())
    print("| rows | slots | float32 | int8 |\n|---|---|---|---|")
    with native.portable(asked.xla):
        for rows in asked.rows:
            for slots in asked.slots:
                found = (best(config, rows, slots, kept, asked.rounds) for kept in ("auto", "int8"))
                print(f"| {rows} | {slots} | {' | '.join(f'{one:.3g}' for one in found)} |", flush=True)


if __name__ == "__main__":
    main()
