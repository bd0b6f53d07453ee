"""The law of load at length (make laws): every family in every dtype, meshes, and several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from agreement import agree
from law import alone, check_law, model_of, requests_for, result, schedule
from models import CONFIG_JSON, FURTHER, HYBRIDS
from test_distributed import free_port
from test_drafts import Told, check_guesses

import nanollm_jax as nano
from nanollm_jax.engine import buckets
from nanollm_jax.engine.engine import Engine

pytestmark = pytest.mark.laws
FAMILIES, DTYPES = [*CONFIG_JSON, *FURTHER], ["float32", "bfloat16", "int8"]
SCHEDULES = 1000 // len(FAMILIES) + 1  # of each family: 1,000 in each dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_every_dtype(family, dtype, monkeypatch):
    """As on other devices, where short pieces of several rows are read at once and rows grow; as a CPU's server; as both."""
    if dtype != "bfloat16":
        monkeypatch.setitem(buckets.TOGETHER, "cpu", 2 * buckets.SHORTEST)
    check_law(model_of(family, dtype), 24, SCHEDULES, context=1 if dtype == "float32" else 400)


# every family once, each dtype and length of blocks in several; full attention and rings in all
GUESSED = {(family, DTYPES[n % 3], (1, 4, 7)[n // 3 % 3]) for n, family in enumerate(FAMILIES) if family not in HYBRIDS}
GUESSED |= {(family, dtype, 4) for family in ("llama", "gemma3_text") for dtype in DTYPES}


@pytest.mark.parametrize(("family", "dtype", "tokens"), sorted(GUESSED))
def test_no_answer_depends_on_what_was_guessed(family, dtype, tokens):
    """Nothing guessed, most of it right, what the text or the model says."""
    model = model_of(family, dtype)
    guesses = [Told(tokens), Told(tokens, wrong=6), nano.Lookup(tokens), nano.DraftModel(model, tokens)]
    # in 8 bits C rounds the activations of up to 16 rows to 16 bits, and XLA none of those of more
    check_guesses(model, 24, 300, guesses, parted=1 if dtype == "int8" else 0)


@pytest.mark.parametrize("mesh", [(1, 8), (2, 4), (4, 2)], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe"])
def test_no_answer_depends_on_what_was_guessed_on_meshes(family, mesh):
    model = nano.shard(model_of(family), nano.make_mesh(*mesh))
    guesses = [Told(3), Told(3, wrong=6), nano.Lookup(3), nano.DraftModel(model, 3)]
    check_guesses(model, 12, 100, guesses, rows=8)


@pytest.mark.parametrize("mesh", [(1, 8), (2, 4), (4, 2)], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe", "deepseek_v3"])
def test_on_meshes(family, mesh):
    """Eight devices: the same bits alone and under load, and the tokens of one device."""
    model, rows = model_of(family), 8
    requests = requests_for(model, 12)
    one, spread = alone(model, requests), nano.shard(model, nano.make_mesh(*mesh))
    expected = alone(spread, requests, rows=rows)
    for mine, theirs in zip(expected, one, strict=True):
        assert mine[0] == theirs[0]
        agree(mine[1], theirs[1], 1e-4, size=10)
    engine = Engine(spread, rows, piece=32)
    for seed in range(3):
        for ticket, expect in zip(schedule(engine, requests, seed), expected, strict=True):
            assert ticket.cancelled or result(ticket) == expect, f"schedule {seed}"


PROCESS = """
import json, sys
import jax
sys.path[:0] = sys.argv[3:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import nanollm_jax as nano
from nanollm_jax.engine.engine import Engine
from law import model_of, requests_for, result, schedule
model = model_of("llama")
requests = requests_for(model, 12)
engine = Engine(nano.shard(model, nano.make_mesh(2, 2)), 4, piece=32)
print(json.dumps([[[ticket.cancelled, *result(ticket)[:2]] for ticket in schedule(engine, requests, seed)] for seed in (1, 2)]))
"""


def test_two_processes_that_are_handed_the_same_events():
    """dp=2, tp=2 over both: each has all answers, the same, and the tokens of one device."""
    folders = [str(Path(__file__).parent), *filter(None, sys.path)]
    port = str(free_port())
    runs = [
        subprocess.Popen([sys.executable, "-c", PROCESS, port, str(which), *folders], stdout=subprocess.PIPE, text=True)
        for which in (0, 1)
    ]
    first, second = (json.loads(run.communicate(timeout=1200)[0].splitlines()[-1]) for run in runs)
    assert first == second
    model = model_of("llama")
    expected = alone(model, requests_for(model, 12))
    for answers in first:
        for (cancelled, ids, logprobs), (tokens, values, *_) in zip(answers, expected, strict=True):
            assert ids == tokens[: len(ids)] and (cancelled or len(ids) == len(tokens))
            agree(logprobs, values[: len(logprobs)], 1e-4, size=10)
