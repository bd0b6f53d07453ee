"""What the engine did lately, stamped by the thread that steps it: the engine itself has no clock."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.rows import Event
from nanollm_jax.glass.costs import bytes_of

STEPS = 1000  # that are remembered


class Timeline:
    """The last steps of an engine. One thread notes, others read."""

    def __init__(self, engine: Engine) -> None:
        """Nothing has happened."""
        self.engine, self.begun, self.count = engine, time.perf_counter(), 0
        self.steps: deque[dict[str, Any]] = deque(maxlen=STEPS)
        self.lock = threading.Lock()

    def note(self, began: float, events: Sequence[Event]) -> None:
        """A step that began then, by perf_counter, has ended now."""
        now, read = time.perf_counter(), bytes_of(self.engine, events)
        with self.lock:
            self.steps.append(
                {"from": began - self.begun, "to": now - self.begun, "read": read, "events": list(events)}
            )
            self.count += 1

    def since(self, number: int) -> dict[str, Any]:
        """The steps from this number on, of those that are remembered; next is the number of the one that comes."""
        with self.lock:
            steps, count = list(self.steps), self.count
        kept = steps[max(0, number - (count - len(steps))) :] if number <= count else steps
        return {"rows": self.engine.rows, "next": count, "now": time.perf_counter() - self.begun, "steps": kept}
