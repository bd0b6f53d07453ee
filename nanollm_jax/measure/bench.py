"""How fast a model starts, reads and writes on this machine, and how near that is to what the machine can do.

Each figure is measured by itself: starting in new processes, with an empty compilation cache and with a filled one;
prefill and decode warm, at every number of rows in turn, and in the same turns the machine's own limits (roofline.py).
Decode is held against the rate of reading and prefill against that of arithmetic: one token per row needs every weight
once, a long prompt needs every weight many times. A model that stays in a CPU's caches can be faster than the limit,
which is that of memory.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nanollm_jax
from nanollm_jax import files, layout
from nanollm_jax import params as parameters
from nanollm_jax.checks import check_counts
from nanollm_jax.dtypes import resolve_weights
from nanollm_jax.engine.drafts import Speculate
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.generate import stream
from nanollm_jax.engine.request import Request
from nanollm_jax.errors import RequestError
from nanollm_jax.families import read_config
from nanollm_jax.loading import Model, load
from nanollm_jax.measure.roofline import product_rate, prompt_flops, read_rate, step_bytes
from nanollm_jax.settings import Sampling
from nanollm_jax.startup import keep_compiled
from nanollm_jax.weights.source import find_shape, read_json

CHUNK = 4  # tokens of a first answer: one call of the compiled loop, as in stream
STARTING = """
import json, sys, time
begun = time.perf_counter()
import nanollm_jax as nano
nano.load, nano.stream  # names are imported when they are first used
imported = time.perf_counter() - begun
from nanollm_jax.measure.bench import first_answer
print(json.dumps({"import": imported} | first_answer(**json.loads(sys.argv[1]))))
"""
Progress = Callable[[str], None]


def bench(
    source: str | None,
    *,
    revision: str | None = None,
    dtype: Any = "auto",
    rows: Sequence[int] = (1, 4, 8, 32),
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    starts: int = 3,
    speculate: Speculate = None,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Measure a model: None is the bundled one; a folder, a hub id, or a config file, which gets random weights.

    rows            batch sizes of prefill and decode
    prompt_tokens   per row; decode comes behind them and writes new_tokens per row
    repeats         timed calls of each, after one that is thrown away
    starts          new processes with an empty compilation cache, and as many with a filled one; 0 leaves starting out
    speculate       who guesses tokens: decode behind a text that says the same over and over, with and without it in turns
    Returns what `nanollm bench --json` prints: seconds, tokens, bytes and FLOPs, with medians, extremes and every sample.
    Raises RequestError for what does not fit the model or the machine's memory, and what load raises.
    """
    prompt_tokens, new_tokens, repeats = check_counts(
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats
    )
    counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    rows = [check_counts(rows=number)[0] for number in rows]
    if not rows:
        raise RequestError("rows is empty; give at least one number of rows.")
    how: dict[str, Any] = {"source": source, "revision": revision, "dtype": name_of(dtype)}
    model = open_model(**how)
    check_fits(model, max(rows), prompt_tokens + max(new_tokens, CHUNK))
    report: dict[str, Any] = {"model": describe(model, source), "machine": machine(), **counts}
    if starts:
        del model  # two copies may not fit
        report["start"] = start(how | {"prompt_tokens": prompt_tokens}, starts, progress)
        model = open_model(**how)
    return report | run(model, rows, prompt_tokens, new_tokens, repeats, speculate, progress)


def name_of(dtype: Any) -> str:
    """A dtype's own name, as another process can be told it. Raises ConfigError for one that weights cannot have."""
    return resolve_weights(dtype).name


def open_model(source: str | None, revision: str | None, dtype: Any) -> Model:
    """A checkpoint, or a config file with random weights, which no tokenizer goes with. All weights on their device."""
    file = find_shape(source, revision)
    if file is not None:
        config, _ = read_config(read_json(file), str(file))
        model = Model(config, parameters.init_params(config, jax.random.key(0), dtype))
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


def start(how: dict[str, Any], starts: int, progress: Progress) -> dict[str, Any]:
    """Answer a first request in new processes, in turns -> {"cold": {stage: summary}, "warm": {stage: summary}}, in seconds."""
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as root:
        for turn in range(starts):
            for kind in found:  # the warm one finds what the cold one left
                progress(f"{kind} start {turn + 1} of {starts}")
                arguments = json.dumps(how | {"cache": f"{root}/{turn}"})
                found[kind].append(started(kind, [sys.executable, "-c", STARTING, arguments]))
    return {
        kind: {stage: summary([one[stage] for one in samples]) for stage in samples[0]}
        for kind, samples in found.items()
    }


def started(kind: str, command: list[str]) -> dict[str, float]:
    """Seconds of each stage as a new process tells them when it has its answer, and in_all, those that passed until it did."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as child:
        assert child.stdout is not None
        told, seconds = child.stdout.readline(), time.perf_counter() - begun
        if child.wait():
            said.seek(0)
            raise RuntimeError(f"the process of a {kind} start failed: {said.read()}")
    return json.loads(told) | {"in_all": seconds}


def first_answer(
    source: str | None, revision: str | None, dtype: str, prompt_tokens: int, cache: str
) -> dict[str, float]:
    """Load a model and answer one request, in this process -> seconds of each stage; what is compiled goes to `cache`."""
    keep_compiled(cache)
    begun = time.perf_counter()
    model = open_model(source, revision, dtype)
    loaded = time.perf_counter()
    answer = stream(model, prompt(model, 1, prompt_tokens)[0].tolist(), max_new_tokens=CHUNK)
    answer.begin()
    while not answer.timings.first_token_seconds:
        next(answer.steps)
    first = answer.timings.first_token_seconds - answer.timings.compile_seconds
    for _ in answer:
        pass
    timings = answer.timings
    return {"load": loaded - begun, "compile": timings.compile_seconds, "first_token": first}


def run(
    model: Model,
    rows: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    speculate: Speculate,
    progress: Progress,
) -> dict[str, Any]:
    """Prefill, decode, first token and the machine's limits, in turns, in this process."""
    config = model.config
    seconds: dict[tuple[str, int], list[float]] = {}
    first, reading, arithmetic = [], [], []
    memory: dict[str, int | None] = {}
    right: dict[int, float] = {}
    for turn in range(repeats + 1):  # the first compiles, touches everything, and shows the peak of memory
        progress(f"turn {turn} of {repeats}" if turn else "compiling")
        for count in rows:
            cost = once(model, prompt(model, count, prompt_tokens), new_tokens)
            for kind, value in zip(("prefill", "decode"), cost, strict=False):
                seconds.setdefault((kind, count), []).append(value)
            if speculate is not None:
                text = np.resize(prompt(model, 1, 32), (count, prompt_tokens))
                alone, guessed = (once(model, text, new_tokens, who) for who in (None, speculate))
                seconds.setdefault(("alone", count), []).append(alone[1])
                seconds.setdefault(("guessed", count), []).append(guessed[1])
                right[count] = guessed[2]
        # another prompt in each turn: one that was read before would be found
        answer = stream(model, prompt(model, 1, prompt_tokens, turn)[0].tolist(), max_new_tokens=CHUNK)
        for _ in answer:
            pass
        first.append(answer.timings.first_token_seconds)
        memory = memory or peaks()
        reading.append(read_rate())
        arithmetic.append(product_rate(model.dtype.activations))
    limits = {"read_bytes_per_second": summary(reading[1:]), "flops_per_second": summary(arithmetic[1:])}
    report: dict[str, Any] = {"limits": limits, "first_token_seconds": summary(first[1:]), "memory": memory}
    if speculate is not None:
        report["speculation"] = [
            {
                "rows": count, "how": str(speculate), "tokens_per_step": right[count],
                "tokens_per_second": summary([count * new_tokens / t for t in seconds["guessed", count][1:]]),
                "times_without": summary([b / a for a, b in zip(seconds["guessed", count][1:], seconds["alone", count][1:],
                                                                strict=True)]),
            }
            for count in rows
        ]  # fmt: skip
    middle = prompt_tokens + new_tokens // 2  # positions that the average step finds
    for kind, tokens in (("prefill", prompt_tokens), ("decode", new_tokens)):
        report[kind] = []
        for count in rows:
            times = seconds[kind, count][1:]
            entry: dict[str, Any] = {"rows": count, "tokens_per_second": summary([count * tokens / t for t in times])}
            if kind == "decode":
                moved = step_bytes(config, count, middle, model.dtype)
                rate = moved * new_tokens / statistics.median(times)
                limit = limits["read_bytes_per_second"]["median"]
                entry |= {"bytes_per_step": moved, "bytes_per_second": rate, "limit_share": rate / limit}
            else:
                flops = prompt_flops(config, count, prompt_tokens)
                rate = flops / statistics.median(times)
                limit = limits["flops_per_second"]["median"]
                entry |= {"flops": flops, "flops_per_second": rate, "limit_share": rate / limit}
            report[kind].append(entry)
    return report


def once(model: Model, prompts: np.ndarray, new_tokens: int, speculate: Speculate = None) -> tuple[float, float, float]:
    """Seconds until an engine has read a prompt in each of its rows [B T], and of writing new_tokens per row behind them; and
    tokens that a row wrote a step.

    Nothing is kept of what was read before. The first token is drawn where the prompt ends; what is written comes behind it.
    """
    engine = Engine(model, len(prompts), prefix_bytes=0, speculate=speculate)
    tickets = [
        engine.submit(Request(tuple(ids.tolist()), new_tokens + 1, Sampling(temperature=0.0))) for ids in prompts
    ]
    jax.block_until_ready(engine.state)
    begun = time.perf_counter()
    engine.step()  # ends when all first tokens are there; by then the first chunk is on its way
    middle = time.perf_counter()
    while not engine.idle:
        engine.step()
    steps = len(tickets) * new_tokens - sum(ticket.accepted for ticket in tickets)
    return middle - begun, time.perf_counter() - middle, len(tickets) * new_tokens / steps


def prompt(model: Model, rows: int, length: int, seed: int = 0) -> np.ndarray:
    """The same random ids on every call.  -> [rows length] int32"""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (rows, length), dtype=np.int32)


# describing


def summary(values: list[float]) -> dict[str, Any]:
    """The median, the extremes and every sample."""
    return {
        "median": statistics.median(values), "lowest": min(values), "highest": max(values), "samples": values,
    }  # fmt: skip


def peaks() -> dict[str, int | None]:
    """The most memory this process has had, in bytes; None where the system does not say, or the device has none of its own."""
    try:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    except ImportError:  # Windows
        host = None
    stats = jax.devices()[0].memory_stats()
    return {
        "host_peak_bytes": host,
        "device_peak_bytes": stats["peak_bytes_in_use"] if stats else None,
    }


def describe(model: Model, source: str | None) -> dict[str, Any]:
    """Which model was measured."""
    return {
        "source": source or "the bundled model", "parameters": model.num_parameters, "bytes": model.nbytes,
        "dtype": model.dtype.name,
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
