"""How fast a model starts, reads and writes on this machine, and how near that is to what the machine can do.

Each figure is measured by itself: starting in new processes, with an empty compilation cache and with a filled one;
prefill and decode warm, at every number of rows in turn, and in the same turns the machine's own limits (roofline.py).
Decode is held against the rate of reading and prefill against that of arithmetic: one token per row needs every weight
once, a long prompt needs every weight many times. A model that stays in a CPU's caches can be faster than the limit,
which is that of memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nanollm_jax.checks import check_counts
from nanollm_jax.engine.drafts import Speculate
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.generate import stream
from nanollm_jax.engine.request import Request
from nanollm_jax.errors import RequestError
from nanollm_jax.loading import Model
from nanollm_jax.measure.roofline import product_rate, prompt_flops, read_rate, step_bytes
from nanollm_jax.measure.starts import CHUNK, start
from nanollm_jax.measure.subject import check_fits, describe, machine, name_of, open_model, prompt, summary
from nanollm_jax.params import nbytes_kept
from nanollm_jax.settings import Sampling
from nanollm_jax.weights.source import find, find_shape

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
    repeats         timed calls of each, after one that is thrown away; 0 leaves all but starting out
    starts          new processes with an empty folder of caches, and as many with a filled one; 0 leaves starting out
    speculate       who guesses tokens: decode behind a text that says the same over and over, with and without it in turns
    Returns what `nanollm bench --json` prints: seconds, tokens, bytes and FLOPs, with medians, extremes and every sample.
    Raises RequestError for what does not fit the model or the machine's memory, and what load raises.
    """
    prompt_tokens, new_tokens = check_counts(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    if repeats or not starts:
        (repeats,) = check_counts(repeats=repeats)
    counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    rows = [check_counts(rows=number)[0] for number in rows]
    if not rows:
        raise RequestError("rows is empty; give at least one number of rows.")
    how: dict[str, Any] = {"source": source, "revision": revision, "dtype": name_of(dtype)}
    model = open_model(**how)
    check_fits(model, max(rows), prompt_tokens + max(new_tokens, CHUNK))
    report: dict[str, Any] = {"model": describe(model, source), "machine": machine(), **counts}
    if starts:
        command = model.tokenizer is not None
        del model  # two copies may not fit
        place = source if source is None or find_shape(source, revision) else str(find(source, revision))
        report["start"] = start(place, how["dtype"], prompt_tokens, starts, progress, command=command)
        if not repeats:
            return report
        model = open_model(**how)
    return report | run(model, rows, prompt_tokens, new_tokens, repeats, speculate, progress)


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
    weights = nbytes_kept(model.params)
    middle = prompt_tokens + new_tokens // 2  # positions that the average step finds
    for kind, tokens in (("prefill", prompt_tokens), ("decode", new_tokens)):
        report[kind] = []
        for count in rows:
            times = seconds[kind, count][1:]
            entry: dict[str, Any] = {"rows": count, "tokens_per_second": summary([count * tokens / t for t in times])}
            if kind == "decode":
                moved = step_bytes(config, count, middle, model.dtype, weights)
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
    while not all(ticket.answer.token_ids for ticket in tickets):  # by the last of them the first chunk is on its way
        engine.step()
    middle = time.perf_counter()
    while not engine.idle:
        engine.step()
    steps = len(tickets) * new_tokens - sum(ticket.accepted for ticket in tickets)
    return middle - begun, time.perf_counter() - middle, len(tickets) * new_tokens / steps


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
