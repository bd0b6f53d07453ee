"""Flags of XLA's compiler for GPUs, one at a time: a process measures what each makes of prefill and decode.

Which of them helps depends on the GPU, the model and the version of XLA; none is set for anybody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nanollm_jax.errors import RequestError

FLAGS = {
    "loops and branches in command buffers": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
    "command buffers for few kernels too": "--xla_gpu_graph_min_graph_size=1",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "products by cuBLAS alone": "--xla_gpu_enable_triton_gemm=false",
    "all tiles of Triton's products tried": "--xla_gpu_exhaustive_tiling_search=true",
    "words of devices behind computing": "--xla_gpu_enable_latency_hiding_scheduler=true",
}
NOTHING = "as it is"
ASK = "import jax; print(jax.default_backend(), jax.local_devices()[0].device_kind, sep=chr(10))"


def try_flags(words: Sequence[str], progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """`nanollm bench WORDS` in a process for each of FLAGS, before and behind them without any -> {"device", "tried": [..]}.

    Each of the tried has its name, its flags, and what bench says of prefill and decode with medians and samples; or the error
    with which its process ended, as it does of a flag that this XLA does not know. XLA_FLAGS of the user's own stay. Raises
    RequestError where there is no GPU, and where bench fails without any flag.
    """
    # in a process of its own: this one would take the GPU's memory
    backend, kind, *_ = [*run(["-c", ASK]).stdout.splitlines(), "nothing", "no device"]
    if backend != "gpu":
        raise RequestError(
            f"--try-flags measures flags of XLA's compiler for GPUs, and JAX has found {backend} ({kind}); run it on a machine "
            "with an NVIDIA GPU, with its part of JAX installed: pip install '.[cuda]'."
        )
    tried: list[dict[str, Any]] = []
    for name, flags in [(NOTHING, ""), *FLAGS.items(), (f"{NOTHING}, again", "")]:
        progress(f"{name}, {len(tried) + 1} of {len(FLAGS) + 2}")
        found = run(["-m", "nanollm_jax", "bench", *words, "--starts", "0", "--json"], flags)
        if found.returncode == 0:
            report = json.loads(found.stdout)
            tried.append({"name": name, "flags": flags, "prefill": report["prefill"], "decode": report["decode"]})
            continue
        said = (found.stderr.strip().splitlines() or [f"status {found.returncode}"])[-1]
        if not tried:
            raise RequestError(f"nanollm bench failed without any flag: {said}")
        tried.append({"name": name, "flags": flags, "error": said})
    return {"device": kind, "tried": tried}


def run(command: list[str], flags: str = "") -> subprocess.CompletedProcess[str]:
    """A process of Python with these flags too, to its end."""
    own = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    return subprocess.run([sys.executable, *command], env=own, capture_output=True, text=True, check=False)


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of each of the tried that ran: its name, rows, tokens/s of decode and times what is without, the same of prefill."""
    first, found = report["tried"][0], []
    for one in report["tried"]:
        for place in range(len(one.get("decode", []))):
            row = [one["name"], str(one["decode"][place]["rows"])]
            for kind in ("decode", "prefill"):
                rate, without = (each[kind][place]["tokens_per_second"]["median"] for each in (one, first))
                row += [f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}", f"{rate / without:.2f}"]
            found.append((*row,))
    return found
