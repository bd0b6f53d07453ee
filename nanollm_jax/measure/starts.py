"""How long it is from nothing to an answer: new processes that import, load, make programs ready and write, and one command.

A cold start has an empty folder of caches, in which the operations in C are compiled too; a warm one finds what it left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from nanollm_jax.engine.generate import stream
from nanollm_jax.measure.subject import open_model, prompt, summary

CHUNK = 4  # tokens of a first answer: one call of the compiled loop, as in stream
TEXT, NEW = "Once upon a time", 32  # what the command is asked, and tokens of its answer
STARTING = """
import json, sys, time
begun = time.perf_counter()
import nanollm_jax as nano
nano.load, nano.stream  # names are imported when they are first used
imported = time.perf_counter() - begun
from nanollm_jax.measure.starts import first_answer
print(json.dumps({"import": imported} | first_answer(**json.loads(sys.argv[1]))), flush=True)
"""


def start(
    source: str | None, dtype: str, prompt_tokens: int, starts: int, progress: Callable[[str], None], *, command: bool
) -> dict[str, Any]:
    """Answer a first request in new processes, in turns -> {"cold": {stage: summary}, "warm": {stage: summary}}, in seconds.

    source: a model or shape on this machine. command: and "command", of `nanollm generate` warm: seconds to its first text and
    to its end.
    """
    kinds = ("cold", "warm", "command") if command else ("cold", "warm")
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    arguments = json.dumps({"source": source, "dtype": dtype, "prompt_tokens": prompt_tokens})
    stages = [sys.executable, "-c", STARTING, arguments]
    whole = [sys.executable, "-m", "nanollm_jax", "generate", TEXT, "--dtype", dtype]
    whole += ["--max-new-tokens", str(NEW), "--temperature", "0", *(["--model", source] if source else [])]
    with tempfile.TemporaryDirectory() as root:
        for turn in range(starts):
            caches = os.path.join(root, str(turn))
            for kind, samples in found.items():
                progress(f"{kind} start {turn + 1} of {starts}")
                samples.append(run_command(whole, caches) if kind == "command" else run_stages(kind, stages, caches))
    return {
        kind: {stage: summary([one[stage] for one in samples]) for stage in samples[0]}
        for kind, samples in found.items()
    }


def run_stages(kind: str, command: list[str], caches: str) -> dict[str, float]:
    """Seconds of each stage as a new process tells them when it has its answer, and in_all, those that passed until it did."""
    first, seconds, _ = run(command, caches, f"the process of a {kind} start")
    return json.loads(first) | {"in_all": seconds}


def run_command(command: list[str], caches: str) -> dict[str, float]:
    """Seconds until it says something, and until it has ended, the second time: it has programs of its own."""
    run(command, caches, "nanollm generate")
    _, first, whole = run(command, caches, "nanollm generate")
    return {"first_text": first, "whole": whole}


def run(command: list[str], caches: str, name: str) -> tuple[bytes, float, float]:
    """A new process with a folder of caches -> what it printed, seconds until the first of it, seconds until its end."""
    begun, environment = time.perf_counter(), {**os.environ, "XDG_CACHE_HOME": caches}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=environment) as child,
    ):
        assert child.stdout is not None
        told = child.stdout.read(1)
        first = time.perf_counter() - begun
        told += child.stdout.read()
        if child.wait():
            said.seek(0)
            raise RuntimeError(f"{name} failed: {said.read()}")
    return told, first, time.perf_counter() - begun


def first_answer(source: str | None, dtype: str, prompt_tokens: int) -> dict[str, float]:
    """Load a model and answer one request, in this process -> seconds of each stage, and of all processors together."""
    begun = time.perf_counter()
    model = open_model(source, None, dtype)
    loaded = time.perf_counter()
    answer = stream(model, prompt(model, 1, prompt_tokens)[0].tolist(), max_new_tokens=CHUNK)
    answer.begin()
    while not answer.timings.first_token_seconds:
        next(answer.steps)
    first = answer.timings.first_token_seconds - answer.timings.compile_seconds
    for _ in answer:
        pass
    stages = {"load": loaded - begun, "compile": answer.timings.compile_seconds, "first_token": first}
    return stages | {"processor": time.process_time()}
