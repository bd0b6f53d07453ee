"""What a request cost is counted once, in the thread that waited for it, and adds up."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp

import nanollm_jax as nano
from nanollm_jax.engine import timings as profiling
from nanollm_jax.engine.timings import CompileWatch


def fresh_program():
    """A program that nobody has compiled yet, with another inside."""
    inner = jax.jit(lambda x: jnp.tanh(x) + 1)
    return jax.jit(lambda x: inner(inner(x) * 2).sum())


def test_seconds_are_those_that_passed(monkeypatch):
    """Spans inside others, as JAX reports them: the inner one first, when it ends."""
    clock = [100.0]
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: clock[0])
    with CompileWatch() as watch:
        clock[0] += 20
        watch.record("/jax/core/compile/jaxpr_trace_duration", 5)
        watch.record("/jax/core/compile/jaxpr_trace_duration", 15)
        watch.record("/jax/something/else", 100)
        assert watch.seconds == 15
        clock[0] += 20
        watch.record("/jax/core/compile/backend_compile_duration", 10)
        assert watch.seconds == 25
        watch.record("/jax/core/compile/backend_compile_duration", 1e6)  # longer than the block: all of it so far
    assert watch.seconds == 40 and watch.programs == 2


def test_what_another_thread_compiles_is_not_counted():
    program, turns = fresh_program(), [threading.Event(), threading.Event()]

    def other():
        turns[0].wait()
        program(jnp.ones(7)).block_until_ready()
        turns[1].set()

    thread = threading.Thread(target=other)
    thread.start()
    with CompileWatch() as watch:
        turns[0].set()
        turns[1].wait()
    thread.join()
    assert (watch.seconds, watch.programs) == (0, 0)
    unseen = jnp.ones(9)  # of a program that was not kept above
    with watch:
        fresh_program()(unseen).block_until_ready()
    assert watch.programs == 1 and watch.seconds > 0


def test_requests_of_two_threads_have_times_that_can_be(short):
    model, found = nano.load(short, dtype="float32"), []

    def ask(prompt):
        stream = nano.stream(model, prompt, max_new_tokens=6)
        list(stream)
        found.append(stream.timings)

    threads = [threading.Thread(target=ask, args=("Once upon a time " * size,)) for size in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for times in found:
        assert min(times.prefill_seconds, times.decode_seconds, times.compile_seconds) >= 0
        assert times.first_token_seconds <= times.prefill_seconds + times.decode_seconds + times.compile_seconds
    assert len(found) == 2
