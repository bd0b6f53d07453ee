"""What Prometheus reads at /metrics. Names end as vLLM's do, so that gateways and dashboards need another prefix only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.rows import Event, Slot, Ticket

PREFIX = "nanollm:"
FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)  # seconds
BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
WHOLE = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Lane(NamedTuple):
    """One row: idle, reading or writing; tokens of its prompt, how many of these were cached and read, and of its answer."""

    state: str
    request: int = -1
    prompt: int = 0
    cached: int = 0
    read: int = 0
    written: int = 0
    most: int = 0

    @classmethod
    def of(cls, slot: Slot) -> Lane:
        """What a row is at."""
        ticket = slot.ticket
        if ticket is None or ticket.ended:
            return cls("idle")
        asked, state = ticket.request, "reading" if slot.reading else "writing"
        written = len(ticket.answer.token_ids)
        return cls(state, ticket.number, len(asked.ids), ticket.cached_tokens, slot.at, written, asked.max_new_tokens)


class Metrics:
    """Counts and durations of one server. All but `text` is called by the engine's thread."""

    def __init__(self, model: str) -> None:
        """model: the name under which it is served, a label of every metric."""
        self.registry = CollectorRegistry()
        self.model = model
        self.running = self.gauge("num_requests_running", "Requests that have a row.")
        self.waiting = self.gauge("num_requests_waiting", "Requests that wait for a row.")
        self.rows = self.gauge("rows", "Rows that there are.")
        self.cache_used = self.gauge("kv_cache_usage_perc", "The part of all rows' positions that is filled, 0 to 1.")
        self.prompt = self.counter("prompt_tokens", "Tokens of prompts, cached ones too.")
        self.written = self.counter("generation_tokens", "Tokens written.")
        self.looked_up = self.counter(
            "prefix_cache_queries", "Tokens of prompts that were looked up in the prefix store."
        )
        self.hits = self.counter("prefix_cache_hits", "Tokens of prompts that were found there and not read again.")
        self.idle_steps = self.counter(
            "idle_row_steps", "Steps of rows, while others wrote, in which nothing was written."
        )
        self.drafted = self.counter("spec_decode_num_draft_tokens", "Tokens that were guessed ahead.")
        self.accepted = self.counter("spec_decode_num_accepted_tokens", "Tokens that were guessed right.")
        self.steps = self.counter("engine_steps", "Steps of the engine.")
        self.seconds = self.counter("engine_seconds", "Seconds that these took.")
        self.compiled = self.counter("compiled_programs", "Programs compiled after the server was ready; expected 0.")
        self.ended = Counter(
            f"{PREFIX}request_success",
            "Requests that came to an end, by its reason: stop or length of answers; scored or pooled of texts that nobody "
            "goes on with, to log-probabilities or to a vector; cancelled where nobody waited; error.",
            ["model_name", "finished_reason"], registry=self.registry,
        )  # fmt: skip
        self.first = self.histogram("time_to_first_token_seconds", "From a request to its first token.", FIRST)
        self.between = self.histogram("inter_token_latency_seconds", "From one token to the next.", BETWEEN)
        self.whole = self.histogram("e2e_request_latency_seconds", "From a request to its end.", WHOLE)
        self.lanes: list[Lane] = []
        self.offered = self.taken = self.idle = 0  # steps of rows, those that wrote a token, those that did not
        self.times: dict[Ticket, tuple[float, float]] = {}  # when it was submitted, and when its last token came

    def gauge(self, name: str, help: str) -> Gauge:
        """A gauge with the model's label on it."""
        return Gauge(PREFIX + name, help, ["model_name"], registry=self.registry).labels(self.model)

    def counter(self, name: str, help: str) -> Counter:
        """A counter."""
        return Counter(PREFIX + name, help, ["model_name"], registry=self.registry).labels(self.model)

    def histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:
        """A histogram."""
        found = Histogram(PREFIX + name, help, ["model_name"], registry=self.registry, buckets=buckets)
        return found.labels(self.model)

    def submitted(self, tickets: Sequence[Ticket]) -> None:
        """Requests have come."""
        now = time.perf_counter()
        for ticket in tickets:
            self.times[ticket] = (now, 0.0)
            self.prompt.inc(len(ticket.request.ids))

    def cancelled(self, ticket: Ticket) -> None:
        """Nobody waits for an answer any more."""
        self.times.pop(ticket, None)
        self.ended.labels(self.model, "cancelled").inc()

    def grown(self, ticket: Ticket, tokens: int) -> None:
        """An answer has so many tokens more."""
        begun, last = self.times[ticket]
        now = time.perf_counter()
        if tokens and not last:
            self.first.observe(now - begun)
            self.read(ticket)
        self.taken += max(tokens - (not last), 0)  # the first one is drawn where the prompt was read
        for _ in range(tokens if last else 0):
            self.between.observe((now - last) / tokens)
        self.times[ticket] = (begun, now if tokens else last)
        self.written.inc(tokens)
        if ticket.ended:
            self.finished(ticket, ticket.answer.finish_reason)

    def without_answer(self, ticket: Ticket) -> None:
        """A text that nobody goes on with has been read to its end."""
        if ticket.request.pooling not in ("", "mean"):  # others are read whole, whatever was kept
            self.read(ticket)
        self.finished(ticket, "pooled" if ticket.request.pooling else "scored")

    def read(self, ticket: Ticket) -> None:
        """A prompt has been read, but for what of it the prefix store had."""
        self.looked_up.inc(len(ticket.request.ids))
        self.hits.inc(ticket.cached_tokens)

    def finished(self, ticket: Ticket, reason: str) -> None:
        """Nothing more will come of a request."""
        begun, _ = self.times.pop(ticket)
        self.whole.observe(time.perf_counter() - begun)
        self.ended.labels(self.model, "error" if ticket.error else reason).inc()

    def stepped(self, engine: Engine, events: Sequence[Event], seconds: float, compiled: int) -> None:
        """The engine has made a step, in which these events were."""
        self.steps.inc()
        self.seconds.inc(seconds)
        self.compiled.inc(compiled)
        for event in events:
            if event.what == "chunk":
                self.offered += engine.rows * event.amount
            elif event.what == "drafted":
                self.drafted.inc(event.amount)
            elif event.what == "accepted":
                self.accepted.inc(event.amount)
                self.taken -= event.amount  # they took no step of their own
        flying = engine.rows * sum(pending.steps for pending in engine.pending)
        idle = self.offered - flying - self.taken
        self.idle_steps.inc(max(idle - self.idle, 0))
        self.idle = max(idle, self.idle)
        seated = [slot for slot in engine.slots if slot.ticket is not None and not slot.ticket.ended]
        self.rows.set(engine.rows)
        self.running.set(len(seated))
        self.lanes = [Lane.of(slot) for slot in engine.slots]
        self.waiting.set(len(engine.queue))
        self.cache_used.set(sum(slot.filled for slot in seated) / (engine.rows * engine.config.max_positions))

    def text(self) -> bytes:
        """All of it, in Prometheus's own format."""
        return generate_latest(self.registry)
