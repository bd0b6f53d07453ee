"""A server of the glass box alone: what app.py and server.py ask of a service, where no engine serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from nanollm_jax.serve.calls import Call
from nanollm_jax.serve.followers import Followers
from nanollm_jax.serve.service import Options
from nanollm_jax.serve.watcher import Watcher


@dataclass
class Looking:
    """One model that is looked at."""

    watcher: Watcher
    options: Options
    followers: Followers = field(default_factory=Followers)
    draining: bool = False
    under_way: dict[int, Call] = field(default_factory=dict)

    @property
    def thread(self) -> Watcher:
        """The one that has the device."""
        return self.watcher

    def begin(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
        """The loop has begun: the example is there when somebody comes."""
        self.watcher.begin(loop)
        self.watcher.example()
