"""One GPU, measured in less than five minutes, without a network and without installing anything.

    PYTHONPATH=. python3 experiments/on_a_gpu.py --out FOLDER        # make gpu
    python experiments/on_a_gpu.py --small --out FOLDER              # the same steps on a CPU, sizes that take seconds
    python experiments/on_a_gpu.py --table                           # README's table, from the files in experiments/gpu

First whether the numbers are right: the bundled model's text, and its logits beside those of the CPU in the same process. Then
an 8B shape with random weights that are made on the device: decode, prefill and the first token, each beside what the
machine can do at best, which is measured in the same run. Then what the compiled programs do to the cache and the weights,
and where a token's time goes.

FOLDER/<device>.json is written anew after every measurement, so a run that is killed leaves what it had. A step that fails
leaves its error there, and the next one begins. Programs are compiled by several threads while the first steps run; what
was timed meanwhile is timed again when they are done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu import shown

import nanollm_jax as nano
from nanollm_jax import params as parameters
from nanollm_jax import sampling as smp
from nanollm_jax.cache import init_cache
from nanollm_jax.decode import init_state, read_prompts, write_tokens
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.measure import bench, roofline, trace
from nanollm_jax.measure.hlo import FREE, PARTS, Program

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "gpu"
SHAPE = ROOT / "configs" / "llama-3.1-8b.json"
STEPS = 16  # tokens of one call of the compiled loop, as in generate
PIECE = 512  # tokens of a prompt that are read together, as in generate
LARGE = 2**16  # numbers: what is smaller may as well be an activation
PROMPT = "Once upon a time"
GOLDEN = (  # what the bundled model says to it on every machine: tests/test_golden.py
    ", there was a little girl named Lily. She loved to play with her toys and eat yummy food. "
    "One day, she found a big, shiny rock in her room. She thought it was very"
)
SMALL = {  # of the shape, so that a CPU does all steps in seconds
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One program of the 8B shape. tokens: of a prompt, read in pieces; 0 is decode."""

    dtype: str
    rows: int
    capacity: int
    tokens: int = 0
    piece: int = 0
    options: tuple[tuple[str, str | bool], ...] = ()

    @property
    def name(self) -> str:
        """What it is called in the report."""
        what = f"prefill of {self.tokens}" if self.tokens else f"decode of {self.rows} rows"
        return " ".join([f"{what}, {self.dtype}", *(f"{key}={value}" for key, value in self.options)])


def cases(small: bool) -> list[Case]:
    """The most valuable first."""
    if small:
        return [
            Case("bfloat16", 1, 96),
            Case("bfloat16", 1, 32, 32, 32),
            Case("bfloat16", 4, 96),
            Case("int8", 1, 96),
            Case("bfloat16", 1, 128, 128, 32),
        ]
    return [
        Case("bfloat16", 1, 1024),
        Case("bfloat16", 1, PIECE, PIECE, PIECE),
        Case("bfloat16", 32, 1024),
        Case("int8", 1, 1024),
        Case("bfloat16", 256, 512),
        Case("bfloat16", 1, 4096, 4096, PIECE),
        Case("int8", 32, 1024),
        Case("int8", 1, PIECE, PIECE, PIECE),
    ]


FLAGS = (
    (
        (
            "xla_gpu_enable_command_buffer",
            "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
        ),
    ),
    (("xla_gpu_enable_command_buffer", ""),),
    (("xla_gpu_enable_triton_gemm", False),),
)


class Report:
    """What is known so far, in a file that is never half written, and the time that is left."""

    def __init__(self, folder: Path, seconds: float, device: str) -> None:
        """A new report in a folder that may not be there yet."""
        self.begun, self.seconds = time.perf_counter(), seconds
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")
        self.values: dict[str, Any] = {"steps": [], "errors": []}

    def left(self) -> float:
        """Seconds until no new step begins."""
        return self.seconds - (time.perf_counter() - self.begun)

    def say(self, text: str) -> None:
        """One line with the seconds so far."""
        print(f"{time.perf_counter() - self.begun:7.1f} s  {text}", flush=True)

    def step(self, name: str, call: Callable[[], Any], key: str = "") -> Any:
        """Do one thing and keep what it returns under `key`, in a list where the report has one; errors are kept too."""
        if self.left() <= 0:
            self.values["errors"].append({"step": name, "error": "not begun: the time was over"})
            return self.save()
        self.say(name)
        begun, found = time.perf_counter(), None
        try:
            found = call()
            if isinstance(self.values.get(key), list):
                self.values[key].append(found)
            elif key:
                self.values[key] = found
        except Exception as error:
            self.say(f"  failed: {type(error).__name__}: {str(error)[:300]}")
            text = f"{type(error).__name__}: {str(error)[:2000]}"
            self.values["errors"].append({"step": name, "error": text, "where": traceback.format_exc()[-2000:]})
        self.values["steps"].append({"step": name, "seconds": round(time.perf_counter() - begun, 3)})
        self.save()
        return found

    def save(self) -> None:
        """The file as a whole, or as it was."""
        self.values["seconds"] = round(time.perf_counter() - self.begun, 1)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.values, indent=1, default=str) + "\n")
        beside.replace(self.path)


# the machine


def describe_machine() -> dict[str, Any]:
    """Device, driver, versions."""
    words = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
    try:
        command = ["nvidia-smi", f"--query-gpu={words}", "--format=csv"]
        smi = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        smi = f"no nvidia-smi: {error}"
    device = jax.devices()[0]
    return bench.machine() | {
        "nvidia_smi": smi, "platform_version": device.client.platform_version, "memory": device.memory_stats(),
        "flags": os.environ.get("XLA_FLAGS", ""), "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip


def seconds_per_call(call: Callable[[], Any], calls: int = 8, repeats: int = 5) -> float:
    """Of calls that follow each other without a wait between them: the median of a few repeats, after one that compiles."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for _ in range(calls):
            last = call()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - begun) / calls)
    return statistics.median(found)


def measure_limits(small: bool) -> dict[str, float]:
    """What the device can do: random numbers everywhere, since zeros are quicker to multiply."""
    size, width, columns = (2**20, 256, 256) if small else (2**30, 8192, 8192)
    key, bfloat16, float32 = jax.random.key(0), jnp.dtype("bfloat16"), jnp.dtype("float32")
    array = parameters.draw(key, 0.0, 1.0, shape=(size // columns, columns), dtype=bfloat16)
    total = jax.jit(lambda a: jnp.sum(a, dtype=float32))
    copy = jax.jit(lambda a: -a)
    vector = parameters.draw(key, 0.0, 1.0, shape=(columns,), dtype=bfloat16)
    by_vector = jax.jit(lambda a, x: jnp.einsum("OI,I->O", a, x, preferred_element_type=float32))
    square = parameters.draw(key, 0.0, 1.0, shape=(width, width), dtype=bfloat16)
    product = jax.jit(lambda a: jnp.einsum("RI,OI->RO", a, a, preferred_element_type=float32).astype(bfloat16))
    one = jnp.ones((8,), float32)
    reading = {
        "sum_bytes_per_second": 2 * size / seconds_per_call(lambda: total(array)),
        "matvec_bytes_per_second": 2 * size / seconds_per_call(lambda: by_vector(array, vector)),
        "copy_bytes_per_second": 4 * size / seconds_per_call(lambda: copy(array)),
    }
    chain, length = jax.jit(lambda x: jax.lax.fori_loop(0, 1000, lambda _, y: jnp.sin(y) * 1.5, x)), 1000
    return reading | {
        "read_bytes_per_second": max(reading["sum_bytes_per_second"], reading["matvec_bytes_per_second"]),
        "flops_per_second": 2 * width**3 / seconds_per_call(lambda: product(square), calls=4),
        "call_seconds": seconds_per_call(lambda: copy(one), calls=200),
        "loop_iteration_seconds": seconds_per_call(lambda: chain(one), calls=1) / length,
    }


# right numbers


def law_of_load(small: bool) -> dict[str, Any]:
    """The bundled model's answers to requests alone, and to the same ones in random order beside each other: are they equal?

    Of each dtype: answers whose tokens are the same, and whose log-probabilities are the same bit for bit.
    """
    found: dict[str, Any] = {"requests": 6 if small else 24, "rows": 8}
    for dtype in ("float32",) if small else ("bfloat16", "float32"):
        model, choose = nano.load(dtype=dtype), random.Random(1)
        text = [choose.randrange(3, 2048) for _ in range(200)]
        prompts = [[*text[: choose.randrange(1, 200)], choose.randrange(3, 2048)] for _ in range(found["requests"])]
        settings = [nano.Sampling(temperature=0.0), nano.Sampling(temperature=1.1, top_p=0.9, repetition_penalty=1.2)]
        requests = [Request(tuple(ids), 16, settings[n % 2], n, streamed=n % 3 == 0) for n, ids in enumerate(prompts)]
        alone, beside = Engine(model, 8, prefix_bytes=0), Engine(model, 8)
        expected = []
        for request in requests:
            expected.append(alone.submit(request))
            while not alone.idle:
                alone.step()
        tickets = {request: beside.submit(request) for request in choose.sample(requests, len(requests))}
        while not beside.idle:
            beside.step()
        answers = [(one.answer, tickets[one.request].answer) for one in expected]
        found[dtype] = {
            "same_tokens": sum(a.token_ids == b.token_ids for a, b in answers),
            "same_bits": sum((a.token_ids, a.logprobs) == (b.token_ids, b.logprobs) for a, b in answers),
            "tokens_that_were_cached": sum(ticket.cached_tokens for ticket in tickets.values()),
        }
    return found


def golden_text() -> dict[str, Any]:
    """The bundled model's greedy story on this device, float32."""
    model = nano.load(dtype="float32")
    text = nano.generate(model, PROMPT, max_new_tokens=40, sampling=nano.Sampling(temperature=0.0)).text
    return {"same": text == GOLDEN, "text": text}


def logits_beside_cpu(make: Callable[[str], nano.Model], tokens: np.ndarray) -> dict[str, Any]:
    """The logits [B T V] of every token on the device and on the CPU: the size of the difference over that of the logits."""

    def on(device: jax.Device, dtype: str) -> np.ndarray:
        with jax.default_device(device):
            model = make(dtype)
            cache = nano.init_cache(model.config, *tokens.shape, dtype)
            forward = jax.jit(nano.forward, static_argnames="config")
            return np.asarray(forward(model.params, tokens, cache, config=model.config)[0], np.float64)

    gpu, cpu = jax.devices()[0], jax.devices("cpu")[0]
    reference = on(cpu, "float32")
    found: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        ours = on(gpu, dtype)
        found[f"{dtype}_error"] = float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))
        found[f"{dtype}_same_best"] = float(np.mean(ours.argmax(-1) == reference.argmax(-1)))
    return found


def bundled_logits() -> dict[str, Any]:
    """Those of the bundled model over its own story."""
    ids = nano.load(dtype="float32").tokenizer.encode(PROMPT + GOLDEN)  # type: ignore[union-attr]
    return logits_beside_cpu(lambda dtype: nano.load(dtype=dtype), np.asarray([ids], np.int32))


def families() -> dict[str, Any]:
    """The tests' small model of every family: {name: its config.json}."""
    sys.path.insert(0, str(ROOT / "tests"))
    from models import CONFIG_JSON, FURTHER

    return CONFIG_JSON | FURTHER


def family_logits(name: str) -> dict[str, Any]:
    """Those of the tests' small random model of a family."""
    config, _ = nano.read_config(families()[name])
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 48), dtype=np.int32)

    def make(dtype: str) -> nano.Model:
        made = nano.init_params(config, jax.random.key(5), "float32")  # one draw, rounded: the same model in each dtype
        return nano.Model(config, jax.tree.map(lambda leaf: leaf.astype(dtype), made))

    return {"family": name} | logits_beside_cpu(make, tokens)


# the 8B shape


class Shape:
    """The architecture, its weights once they are made, and its programs once they are compiled."""

    def __init__(self, small: bool, layers: int | None) -> None:
        """Nothing is made yet."""
        values = json.loads(SHAPE.read_text()) | (SMALL if small else {})
        values |= {"num_hidden_layers": layers} if layers else {}
        self.config, _ = nano.read_config(values)
        self.small, self.weights, self.lowering = small, {}, threading.Lock()

    def describe(self) -> dict[str, Any]:
        """What it is."""
        whole = json.loads(SHAPE.read_text())["num_hidden_layers"]
        return {
            "source": SHAPE.name, "layers": self.config.num_layers, "all_layers": whole, "small": self.small,
            "parameters": parameters.count(self.config), "weights": "random",
        }  # fmt: skip

    def params(self, dtype: str) -> Any:
        """The weights, made on the device one parameter after the other on the first call."""
        if dtype not in self.weights:
            made = nano.init_params(self.config, jax.random.key(0), dtype)
            self.weights[dtype] = jax.block_until_ready(made)
        return self.weights[dtype]

    def abstract(self, case: Case) -> tuple[Any, Any, Any, Any]:
        """Shapes of a program's arguments: weights, state, sampling, seeds."""
        weights = jax.eval_shape(lambda: nano.init_params(self.config, jax.random.key(0), case.dtype))
        dtype = np.dtype(weights["embedding"]["tokens"].dtype)
        make = lambda: init_state(init_cache(self.config, case.rows, case.capacity, dtype), self.config)  # noqa: E731
        state = jax.eval_shape(make)
        fresh = 0 < case.tokens == case.piece
        state = dataclasses.replace(state, cache=dataclasses.replace(state.cache, fresh=fresh))
        sampling = nano.Sampling(temperature=0.0).rows(case.rows, self.config.vocab_size)
        return weights, state, sampling, np.zeros(case.rows, np.uint32)

    def compile(self, case: Case) -> tuple[jax.stages.Compiled, float]:
        """One program, and the seconds that XLA took. Traced one at a time, since Python is; compiled side by side."""
        with self.lowering:
            weights, state, sampling, seeds = self.abstract(case)
            if case.tokens:
                tokens, count = np.zeros((case.rows, case.piece), np.int32), np.zeros(case.rows, np.int32)
                lowered = read_prompts.lower(weights, tokens, count, state, config=self.config)
            else:
                lowered = write_tokens.lower(weights, state, sampling, seeds, config=self.config, steps=STEPS)
        begun = time.perf_counter()
        return lowered.compile(compiler_options=dict(case.options) or None), time.perf_counter() - begun

    def state(self, case: Case) -> Any:
        """A state whose cache and logits are random numbers."""
        key = iter(jax.random.split(jax.random.key(1), 2 * self.config.num_layers + 1))

        def made(leaf: Any) -> jax.Array:
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return parameters.draw(next(key), 0.0, 1.0, shape=leaf.shape, dtype=leaf.dtype)
            return jnp.zeros(leaf.shape, leaf.dtype)

        return jax.tree.map(made, self.abstract(case)[1])


def at(state: Any, length: int, fresh: bool = False) -> Any:
    """The state with every row at so many positions."""
    lengths = jnp.full(state.cache.batch, length, jnp.int32)
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, length=lengths, fresh=fresh))


def measure_decode(shape: Shape, case: Case, program: jax.stages.Compiled, limits: dict[str, float]) -> dict[str, Any]:
    """Seconds a token, after one call that is thrown away. Attention reads the whole capacity, which is nearly full here."""
    params, state = shape.params(case.dtype), shape.state(case)
    _, _, sampling, seeds = shape.abstract(case)
    sampling, seeds = jax.device_put((sampling, seeds))
    chunks, repeats = (4, 5) if case.rows == 1 else (2, 4)
    first = case.capacity - chunks * STEPS - 1
    samples = []
    for _ in range(repeats + 1):
        state = jax.block_until_ready(at(state, first))
        begun = time.perf_counter()
        for _ in range(chunks):
            *_, state = program(params, state, sampling, seeds)
        jax.block_until_ready(state)
        samples.append((time.perf_counter() - begun) / (chunks * STEPS))
    found = statistics.median(samples[1:])
    moved = roofline.step_bytes(shape.config, case.rows, case.capacity - 1, case.dtype)
    flops = 2 * case.rows * parameters.count(shape.config)
    limit = max(moved / limits["read_bytes_per_second"], flops / limits["flops_per_second"])
    return {
        "seconds_per_step": found, "samples": samples[1:], "tokens_per_second": case.rows / found, "bytes_per_step": moved,
        "bytes_per_second": moved / found, "limit_seconds": limit, "limit_share": limit / found,
    }  # fmt: skip


def measure_prefill(shape: Shape, case: Case, program: jax.stages.Compiled, limits: dict[str, float]) -> dict[str, Any]:
    """Seconds of reading one prompt of random ids, in the pieces that generate reads it in; and those to the first token."""
    params, state, config = shape.params(case.dtype), shape.state(case), shape.config
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (case.rows, case.tokens), dtype=np.int32)
    count, fresh = np.full(case.rows, case.piece, np.int32), case.tokens == case.piece
    _, _, sampling, seeds = shape.abstract(case)
    drawn, samples, first = jax.jit(smp.draw), [], []
    for _ in range(6):
        state = jax.block_until_ready(at(state, 0, fresh))
        begun = time.perf_counter()
        for start in range(0, case.tokens, case.piece):
            state = program(params, ids[:, start : start + case.piece], count, state)
        jax.block_until_ready(state)
        samples.append(time.perf_counter() - begun)
        np.asarray(drawn(state.logits, sampling, state.past, seeds, state.cache.length)[0])
        first.append(time.perf_counter() - begun)
    found, flops = statistics.median(samples[1:]), roofline.prompt_flops(config, case.rows, case.tokens)
    moved = roofline.step_bytes(config, case.rows, 0, case.dtype)
    arithmetic, reading = flops / limits["flops_per_second"], moved / limits["read_bytes_per_second"]
    limit = max(arithmetic, reading * case.tokens / case.piece)
    return {
        "seconds": found, "samples": samples[1:], "tokens_per_second": case.rows * case.tokens / found,
        "first_token_seconds": statistics.median(first[1:]), "flops": flops, "flops_per_second": flops / found,
        "limit_seconds": limit, "limit_share": limit / found,
    }  # fmt: skip


def read_program(shape: Shape, case: Case, program: jax.stages.Compiled) -> dict[str, Any]:
    """What the compiled loop does to the cache and the weights, read from its text."""
    state, text, memory = shape.abstract(case)[1], program.as_text() or "", program.memory_analysis()
    buffers = jax.tree.leaves(state.cache.layers)
    weights = [leaf for leaf in jax.tree.leaves(shape.params(case.dtype)) if leaf.ndim > 1]
    parsed = Program(text)
    runs = [parsed.instructions[name] for name in parsed.costs()]
    per_token = [one for one in runs if one.computation in parsed.loops and one.opcode not in FREE]
    sizes = {size for leaf in weights + buffers if (size := int(np.prod(leaf.shape))) > LARGE}
    whole = [
        f"{one.opcode} {one.type} in {one.computation}"
        for one in runs
        if int(np.prod(one.shape)) in sizes and not parsed.in_place(one)
    ]
    return {
        "kernels_per_token": len(per_token), "argument_bytes": memory.argument_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes, "temporary_bytes": memory.temp_size_in_bytes,
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "as_large_as_a_weight_or_a_cache_buffer": whole,
    }  # fmt: skip


def token_parts(shape: Shape, case: Case, program: jax.stages.Compiled, limits: dict[str, float]) -> dict[str, Any]:
    """Where the time of a token goes, by the named parts of the model: one call of the loop under the profiler."""
    params, state = shape.params(case.dtype), at(shape.state(case), case.capacity - 3 * STEPS)
    _, _, sampling, seeds = shape.abstract(case)
    *_, state = jax.block_until_ready(program(params, state, sampling, seeds))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(program(params, state, sampling, seeds))
        (file,) = Path(folder).rglob("*.xplane.pb")
        parsed = Program(program.as_text() or "")
        runs, kernels = trace.read_trace(file, parsed), longest(file)
    rates = limits["read_bytes_per_second"], limits["flops_per_second"]
    parts = trace.summarize(runs, parsed.costs(), *rates) if runs else []
    if not {part["part"] for part in parts} & set(PARTS):
        raise RuntimeError(f"no part of {parsed.name} in the trace, which has {kernels}")
    return {"case": case.name, "tokens": STEPS, "executions": len(runs), "parts": parts, "longest": kernels}


def longest(file: Path) -> list[tuple[str, str, int, float]]:
    """What took the most time on each line of a device in a trace: the line, the name, how often, seconds."""
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines if plane.name.startswith("/device") else []:
            runs: dict[str, list[float]] = {}
            for event in line.events:
                runs.setdefault(event.name, []).append(event.duration_ns / 1e9)
            top = sorted(runs, key=lambda name: -sum(runs[name]))[:8]
            found += [(line.name, name, len(runs[name]), sum(runs[name])) for name in top]
    return found


# everything in turn


def run(report: Report, small: bool, layers: int | None, checked: list[str], threads: int) -> None:
    """All steps, the most valuable first."""
    report.step("machine", describe_machine, "machine")
    limits = report.step("limits", partial(measure_limits, small), "limits")
    shape, work = Shape(small, layers), cases(small)
    report.values |= {"shape": shape.describe(), "cases": [], "programs": [], "parts": [], "families": []}
    pool = ThreadPoolExecutor(threads)
    futures = {case: pool.submit(shape.compile, case) for case in work}
    report.step("golden text", golden_text, "golden")
    report.step("bundled model's logits", bundled_logits, "logits")
    report.step("law of load", partial(law_of_load, small), "load")
    report.step("weights of the shape in bfloat16", lambda: shape.params("bfloat16") and None)
    if limits is None:
        return report.say("nothing to hold times against")
    measure_all(report, shape, futures, limits)
    for case in (case for case in work if not case.tokens):
        if ready(futures[case]):
            look = lambda case: {"case": case.name} | read_program(shape, case, futures[case].result()[0])  # noqa: E731
            report.step(f"reading the program of {case.name}", partial(look, case), "programs")
    if ready(futures[work[0]]):
        program = futures[work[0]].result()[0]
        report.step("where a token's time goes", lambda: token_parts(shape, work[0], program, limits), "parts")
    if not small:
        slowest = max((futures[case].result()[1] for case in work if ready(futures[case])), default=1e9)
        if report.left() > slowest + 20:
            tried = [dataclasses.replace(work[0], options=options) for options in FLAGS]
            measure_all(report, shape, {case: pool.submit(shape.compile, case) for case in tried}, limits)
    logits = {name: pool.submit(family_logits, name) for name in checked}
    for name, future in logits.items():
        report.step(f"logits of {name}", lambda future=future: future.result(max(report.left(), 1)), "families")
    pool.shutdown(wait=False, cancel_futures=True)


def ready(future: Future) -> bool:
    """Has it been compiled, without an error?"""
    return future.done() and not future.cancelled() and future.exception() is None


def measure_all(report: Report, shape: Shape, futures: dict[Case, Future], limits: dict[str, float]) -> None:
    """Time every program as soon as it is compiled, and again, undisturbed, when all are."""
    waiting, again = list(futures), []
    while waiting and report.left() > 0:
        case = next((case for case in waiting if futures[case].done()), None)
        if case is None:
            time.sleep(0.1)
            continue
        waiting.remove(case)
        alone = all(future.done() for future in futures.values())
        report.step(case.name, partial(measure, report, shape, case, futures[case], limits, alone))
        if ready(futures[case]) and not alone:
            again.append(case)
    for case in waiting:
        report.values["errors"].append({"step": case.name, "error": "not compiled when the time was over"})
    for case in sorted(again, key=list(futures).index):
        report.step(f"{case.name}, again", partial(measure, report, shape, case, futures[case], limits, True))
    report.save()


def measure(report: Report, shape: Shape, case: Case, future: Future, limits: dict[str, float], alone: bool) -> None:
    """Time one program, and put it in the place of what was known of it."""
    program, compiling = future.result()
    how = measure_prefill if case.tokens else measure_decode
    entry = dataclasses.asdict(case) | {"case": case.name, "compile_seconds": compiling, "undisturbed": alone}
    entry |= how(shape, case, program, limits)
    report.say(f"  {entry['tokens_per_second']:.1f} tokens/s, {100 * entry['limit_share']:.0f} % of the limit")
    known = {old["case"]: old for old in report.values["cases"]} | {case.name: entry}
    report.values["cases"] = list(known.values())


def main(words: list[str] | None = None) -> Path | None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the JSON and the picture")
    parser.add_argument("--seconds", type=float, default=280, help="after which no new step begins")
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--layers", type=int, help="of the shape, instead of its own number")
    parser.add_argument("--families", action="store_true", help="the logits of every family, not of three")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1), help="programs compiled together")
    parser.add_argument("--cache", help="keep compiled programs in this folder")
    parser.add_argument("--table", action="store_true", help="measure nothing; print the tables of what is kept here")
    arguments = parser.parse_args(words)
    if arguments.table:
        for file in sorted(RESULTS.glob("*.json")):
            print(shown.table(json.loads(file.read_text())))
        return None
    if arguments.cache:
        nano.keep_compiled(arguments.cache)
    report = Report(arguments.out, arguments.seconds, jax.devices()[0].device_kind)
    few = [] if arguments.small else ["gpt2", "gemma3_text", "qwen3_moe"]
    names = sorted(families()) if arguments.families else few
    run(report, arguments.small, arguments.layers, names, arguments.threads)
    report.seconds = float("inf")
    report.step("picture", lambda: shown.picture(report.values, report.path.with_suffix(".png")))
    report.say(f"{len(report.values['errors'])} errors; {report.path}\n")
    if report.values["cases"]:
        print(shown.table(report.values))
    return report.path


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # what is still being compiled is not waited for
