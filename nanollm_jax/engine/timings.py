"""What a request cost: seconds and tokens, with compilation counted apart."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType

from jax import monitoring

from nanollm_jax.executables import FETCHED


class CompileWatch:
    """What JAX compiles in this thread while the block runs.

    with CompileWatch() as watch: ...

    programs    how many were made ready
    fetched     how many of these were not compiled, but taken from the folder that keep_compiled names
    seconds     what all of that took, tracing and lowering included, and what is traced inside a trace once
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.programs = 0
        self.fetched = 0
        self.thread = 0
        self.begun = 0.0
        self.spans: list[tuple[float, float]] = []  # from when to when, one behind the other

    def record(self, event: str, duration_secs: float, **_: str | int) -> None:
        """JAX reports one duration: tracing, lowering, or compiling, each once per program, in the thread that waits for it."""
        if not event.startswith(("/jax/core/compile/", FETCHED)) or threading.get_ident() != self.thread:
            return
        self.programs += event.endswith("backend_compile_duration") or event == FETCHED
        self.fetched += event == FETCHED
        ended = time.perf_counter()
        begun = max(ended - duration_secs, self.begun)
        while self.spans and self.spans[-1][0] >= begun:
            self.spans.pop()  # it was inside
        self.spans.append((max(begun, self.spans[-1][1]) if self.spans else begun, ended))

    @property
    def seconds(self) -> float:
        """Never more than have passed since the block began."""
        return sum(ended - begun for begun, ended in self.spans)

    def record_hit(self, event: str, **_: str | int) -> None:
        """JAX reports that something happened: among much else, that a kept program was found."""
        if event == "/jax/compilation_cache/cache_hits" and threading.get_ident() == self.thread:
            self.fetched += 1

    def __enter__(self) -> CompileWatch:
        """Start listening."""
        self.thread = threading.get_ident()
        self.begun = time.perf_counter()
        monitoring.register_event_duration_secs_listener(self.record)
        monitoring.register_event_listener(self.record_hit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        monitoring.unregister_event_duration_listener(self.record)
        monitoring.unregister_event_listener(self.record_hit)


@dataclass
class Timings:
    """One request, in seconds and tokens summed over its rows.

    compile_seconds is what programs took to be made ready: `compiled` of them by compiling, `fetched` from the folder that
    keep_compiled names. It is in first_token_seconds too, which is what a user waits for: the prompt and the first token of
    the answer. It is not in prefill_seconds and decode_seconds, of which the rates are made.
    prompt_tokens are those that were read; cached_tokens the part of the prompt in front of them that a cache had already.
    drafted_tokens were guessed ahead, accepted_tokens of them rightly, where the rows speculate.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    compile_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    compiled: int = 0
    fetched: int = 0

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens read per second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def new_rate(self) -> float:
        """New tokens written per second."""
        return self.new_tokens / self.decode_seconds if self.decode_seconds else 0.0
