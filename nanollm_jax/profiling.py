"""What a request cost: seconds and tokens, with compilation counted apart."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from jax import monitoring


class CompileWatch:
    """What JAX compiles while the block runs: `programs` (a count) and `seconds` (tracing and lowering included).

    with CompileWatch() as watch: ...
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.programs = 0
        self.seconds = 0.0

    def record(self, event: str, duration_secs: float, **_: str | int) -> None:
        """JAX reports one duration: tracing, lowering, or compiling, each once per program."""
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration_secs
            self.programs += event.endswith("backend_compile_duration")

    def __enter__(self) -> CompileWatch:
        """Start listening."""
        monitoring.register_event_duration_secs_listener(self.record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        monitoring.unregister_event_duration_listener(self.record)


@dataclass
class Timings:
    """One request, in seconds and tokens summed over its rows. Compilation is in compile_seconds and nowhere else.

    first_token_seconds is what a user waits for, compilation left out: the prompt and the first chunk of the answer.
    prompt_tokens are those that were read; cached_tokens the part of the prompt in front of them that a cache had already.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    compile_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0
    cached_tokens: int = 0

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens read per second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def new_rate(self) -> float:
        """New tokens written per second."""
        return self.new_tokens / self.decode_seconds if self.decode_seconds else 0.0
