"""The other end of sandbox.py: starts the process that runs templates, asks it, and stops it when it takes too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanollm_jax.errors import RequestError, TokenizerError
from nanollm_jax.worker import Worker

SECONDS = 10.0  # that one conversation may take; a long one takes milliseconds


class Renderer(Worker):
    """Reads and renders templates in a process beside this one, which is started for the first and kept for the next."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Nothing runs before the first template is read."""
        super().__init__(Path(__file__).with_name("sandbox.py"), seconds)

    def render(self, where: str, template: str, variables: dict[str, Any]) -> str:
        """Text of one conversation.  where: what errors name; variables: JSON values

        Raises RequestError for what the template refuses, TokenizerError for a template that is broken, takes longer than
        `seconds`, or needs too much memory.
        """
        try:
            line = json.dumps({"template": template, "variables": variables}, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages and template variables must be JSON values: {error}.") from None
        answer = self.ask(where, line)
        if answer.get("kind") == "refused":
            raise RequestError(f"the chat template refuses this conversation: {answer['error']}")
        if "error" in answer:
            raise TokenizerError(f"{where}: the chat template fails on this conversation: {answer['error']}.")
        return answer["text"]

    def literals(self, where: str, template: str) -> set[str]:
        """Every piece of text that stands in a template, as it is and as a string. Raises TokenizerError as render does."""
        answer = self.ask(where, json.dumps({"template": template}).encode())
        if "error" in answer:
            raise TokenizerError(f"{where}: the chat template cannot be read: {answer['error']}; copy it again.")
        return set(answer["literals"])

    def ask(self, where: str, line: bytes) -> dict[str, Any]:
        """One line there, one line back. Raises TokenizerError where there is no answer in time."""
        with self.lock:
            answer = self.exchange(line + b"\n")
        if answer is None:
            found = f"ran longer than {self.seconds:g} s and was stopped"
            raise TokenizerError(f"{where}: the chat template {found}; does it loop for ever? Use another.")
        return answer
