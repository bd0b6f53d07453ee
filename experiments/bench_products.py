"""How long the products of a layer take: a few rows times weights in 16, 8 and 4 bits, in C and by XLA, beside XLA's float32.

    NANOLLM_NATIVE=avx2 python experiments/bench_products.py --rows 1 8 --width 2048 --seconds

Every way is called in turns, and each figure is the best of the rounds, in processor time of this process: what others do on
the machine counts least there; do not pin it to one core, where threads that wait for each other count too. A way's number
is how many times as fast as XLA's float32 it is; --seconds prints milliseconds.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from nanollm_jax.ops import groupwise_making, int8, native
from nanollm_jax.ops.linear import product


def ways(width: int) -> dict[str, tuple[list[object], str, bool]]:
    """{name: weights of a layer, dtype of activations, whether by XLA alone}; a layer like LLaMA's, 10.5 squares of width."""
    rng = np.random.default_rng(0)
    shapes = [(5 * width // 4, width), (width, width), (11 * width // 2, width), (width, 11 * width // 4)]
    whole = [jnp.asarray(0.02 * rng.standard_normal(shape, np.float32)) for shape in shapes]
    kinds = {"float32": whole}
    kinds |= {name: [weight.astype(name) for weight in whole] for name in ("bfloat16", "float16")}
    kinds["int8"] = [int8.quantize(weight, 1) for weight in whole]
    for group in (32, 128):
        kinds[f"int4/{group}"] = [groupwise_making.quantize(weight, bits=4, group=group) for weight in whole]
    made: dict[str, tuple[list[object], str, bool]] = {"float32": (whole, "float32", True)}
    for name in [name for name in kinds if name != "float32"]:
        plain = name if name.endswith("16") else "float32"
        made |= {f"{name} {where}": (kinds[name], plain, where == "XLA") for where in ("C", "XLA")}
    return made


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", action="store_true", help="the best time of each, in milliseconds, too")
    asked = parser.parse_args()
    print(native.library())
    tried = ways(asked.width)
    for rows in asked.rows:
        compiled = {}
        for name, (weights, dtype, portable) in tried.items():
            x = [jnp.ones((rows, weight.shape[1]), dtype) for weight in weights]
            with native.portable(portable):
                run = jax.jit(lambda x, weights: [product(*pair) for pair in zip(x, weights, strict=True)])
                compiled[name] = (run.lower(x, weights).compile(), x, weights)
        best = dict.fromkeys(compiled, float("inf"))
        for _ in range(asked.rounds):
            for name, (run, x, weights) in compiled.items():
                begun = time.process_time()
                jax.block_until_ready(run(x, weights))
                best[name] = min(best[name], time.process_time() - begun)
        figures = (
            f"{name} {best['float32'] / seconds:.2f}" + (f" ({1e3 * seconds:.2f} ms)" if asked.seconds else "")
            for name, seconds in best.items()
        )
        print(f"{rows} rows: {', '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
