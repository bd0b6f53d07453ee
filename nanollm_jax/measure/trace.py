"""Where the time of prefill and decode goes, by the parts of the model, and how far each part is from the roofline.

Both programs are compiled once and run under jax.profiler. Its trace says when each instruction ran, the compiled program
what the instruction belongs to, computes and moves (hlo.py), and roofline.py what the machine can do. What XLA fused is
counted with the part of its result: rope, for example, mostly disappears into the writing of the cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nanollm_jax.cache import init_cache
from nanollm_jax.checks import check_counts
from nanollm_jax.decode import init_state, read_prompts, write_tokens
from nanollm_jax.errors import RequestError
from nanollm_jax.loading import Model
from nanollm_jax.measure.hlo import Cost, Program
from nanollm_jax.measure.roofline import product_rate, read_rate
from nanollm_jax.measure.subject import check_fits, describe, machine, open_model, prompt
from nanollm_jax.settings import Sampling

WAITING = "waiting"  # nothing runs: the time between two instructions


@dataclass(frozen=True)
class Run:
    """One execution of one instruction, in nanoseconds."""

    instruction: str
    begun: float
    ended: float


def profile(
    source: str | None,
    folder: str | Path,
    *,
    revision: str | None = None,
    dtype: Any = "auto",
    rows: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
) -> dict[str, Any]:
    """Trace one prefill of [rows prompt_tokens] and one decode of new_tokens per row, warm, into a new folder in `folder`.

    source as in bench. Returns what `nanollm profile --json` prints: per program its seconds, and per part of the model
    seconds, executions, FLOPs, bytes, the seconds of the roofline, and their share of what was measured.
    Raises RequestError for what does not fit, for a folder that cannot be made, and for a device whose trace does not name
    instructions.
    """
    rows, prompt_tokens, new_tokens = check_counts(rows=rows, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"the trace cannot be written to {folder}: {error}.") from None
    model = open_model(source, revision, dtype)
    return {"model": describe(model, source)} | profile_model(model, folder, rows, prompt_tokens, new_tokens)


def profile_model(model: Model, folder: str | Path, rows: int, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """profile of a model that is loaded. Without the line that describes it."""
    check_fits(model, rows, prompt_tokens + new_tokens)
    rates = {"read_bytes_per_second": read_rate(), "flops_per_second": product_rate(model.dtype.activations)}
    config = model.config
    tokens, lengths = prompt(model, rows, prompt_tokens), np.full(rows, prompt_tokens, np.int32)
    sampling, seeds = Sampling(temperature=0.0).rows(rows, config.vocab_size), np.zeros(rows, np.uint32)

    def empty() -> Any:
        cache = init_cache(config, rows, prompt_tokens + new_tokens, model.dtype.activations)
        return jax.block_until_ready(init_state(cache, config))

    reading = read_prompts.lower(model.params, tokens, lengths, empty(), config=config).compile(named())
    state = reading(model.params, tokens, lengths, empty())
    writing = write_tokens.lower(model.params, state, sampling, seeds, config=config, steps=new_tokens).compile(named())
    jax.block_until_ready(writing(model.params, state, sampling, seeds))
    untouched = empty()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call, otherwise: large, slow, and nobody's question here
    before = set(Path(folder).rglob("*.xplane.pb"))
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        state = jax.block_until_ready(reading(model.params, tokens, lengths, untouched))
        jax.block_until_ready(writing(model.params, state, sampling, seeds))
    (file,) = set(Path(folder).rglob("*.xplane.pb")) - before
    report: dict[str, Any] = {
        "machine": machine(), "rows": rows, "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens, "limits": rates, "folder": str(file.parent),
        "files": sorted(path.name for path in file.parent.iterdir()),
    }  # fmt: skip
    for name, compiled, count in (("prefill", reading, rows * prompt_tokens), ("decode", writing, rows * new_tokens)):
        program = Program(compiled.as_text() or "")
        runs = read_trace(file, program)
        if not runs:
            raise RequestError(
                f"the trace of {jax.devices()[0].device_kind} does not name the instructions of {name}; open {file.parent} "
                "in XProf or Perfetto instead."
            )
        parts = summarize(runs, program.costs(), rates["read_bytes_per_second"], rates["flops_per_second"])
        seconds = sum(entry["seconds"] for entry in parts)
        report[name] = {"seconds": seconds, "tokens_per_second": count / seconds, "parts": parts}
    return report


def named() -> dict[str, str] | None:
    """What a program is compiled with to be traced: on a GPU, without command buffers, where a library's kernel has no name."""
    return {"xla_gpu_enable_command_buffer": ""} if jax.default_backend() == "gpu" else None


def read_trace(file: Path, program: Program) -> list[Run]:
    """When each instruction of a program ran, in order of beginning. What is none of its instructions is left out.

    On a GPU a kernel bears its instruction's name, with other signs, and in a command buffer that is all that is said. A GPU's
    own lines are its streams; others beside them may tell the same again, as the host's may.
    """
    plain = lambda name: re.sub(r"\W", "_", str(name))  # noqa: E731
    known = {plain(name): name for name in program.instructions}
    found: dict[bool, list[Run]] = {True: [], False: []}
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or lines:
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") != program.name or "hlo_op" not in stats:
                    continue
                if name := known.get(plain(stats["hlo_op"])) or known.get(plain(event.name)):
                    run = Run(name, event.start_ns, event.start_ns + event.duration_ns)
                    found[plane.name.startswith("/device")].append(run)
    return sorted(found[True] or found[False], key=lambda run: run.begun)


def shares(runs: Iterable[Run]) -> tuple[dict[str, float], float]:
    """How the time from the first beginning to the last end divides -> nanoseconds of each instruction, and of nothing.

    Where several run at once, each gets an equal part of that time, so that all of them together are the time that passed.
    """
    edges = sorted(
        (time, change, run.instruction) for run in runs for time, change in ((run.begun, 1), (run.ended, -1))
    )
    spent: dict[str, float] = {}
    active: dict[str, int] = {}
    idle, last = 0.0, edges[0][0]
    for time, change, name in edges:
        together = sum(active.values())
        for each, count in active.items():
            spent[each] = spent.get(each, 0.0) + (time - last) * count / together
        idle += (time - last) * (not together)
        last = time
        active[name] = active.get(name, 0) + change
        if not active[name]:
            del active[name]
    return spent, idle


def summarize(runs: list[Run], costs: dict[str, Cost], read_rate: float, flop_rate: float) -> list[dict[str, Any]]:
    """One entry per part of the model, the longest first, and one for the time in which nothing ran.

    roofline_seconds is the sum over its instructions of the longer of bytes / reading and FLOPs / arithmetic, so a part
    that is split into many small instructions is not measured against what one large one would take.
    """
    runs = [run for run in runs if run.instruction in costs]
    spent, idle = shares(runs)
    whole = sum(spent.values()) + idle
    parts: dict[str, dict[str, Any]] = {}
    for run in runs:
        cost = costs[run.instruction]
        entry = parts.setdefault(cost.part, {"executions": 0, "flops": 0, "bytes": 0, "roofline_seconds": 0.0})
        entry["executions"] += 1
        entry["flops"] += cost.flops
        entry["bytes"] += cost.nbytes
        entry["roofline_seconds"] += max(cost.nbytes / read_rate, cost.flops / flop_rate)
    report = []
    for part, entry in parts.items():
        seconds = sum(time for name, time in spent.items() if costs[name].part == part) / 1e9
        share = entry["roofline_seconds"] / seconds if seconds else None
        report.append({"part": part, "seconds": seconds, "share": seconds * 1e9 / whole, **entry, "limit_share": share})
    report.sort(key=lambda entry: -entry["seconds"])
    empty = {"executions": 0, "flops": 0, "bytes": 0, "roofline_seconds": 0.0, "limit_share": None}
    return [*report, {"part": WAITING, "seconds": idle / 1e9, "share": idle / whole, **empty}]
