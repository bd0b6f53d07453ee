"""The other end of sandbox.py: starts the process that runs templates, asks it, and stops it when it takes too long."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from nanollm_jax.errors import RequestError, TokenizerError

SECONDS = 10.0  # that one conversation may take; a long one takes milliseconds


class Renderer:
    """Reads and renders templates in a process beside this one, which is started for the first and kept for the next."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Nothing runs before the first template is rendered."""
        self.seconds = seconds
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

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

    def exchange(self, line: bytes) -> dict[str, Any] | None:
        """One line there, one line back; None where there was no answer in time."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        process, timed_out = self.process, threading.Event()
        assert process is not None and process.stdin is not None and process.stdout is not None

        def stop() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(self.seconds, stop)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
            said = process.stdout.readline()
        except BaseException:  # Ctrl-C: what this line is answered with must not be read as the next one's answer
            process.kill()
            raise
        finally:
            timer.cancel()
        if said.endswith(b"\n"):
            return json.loads(said)
        process.wait()
        if timed_out.is_set():
            return None
        return {"kind": "memory", "error": f"its process ended with code {process.returncode}, perhaps out of memory"}

    def start(self) -> None:
        """Start the process; it ends when this object does."""
        close(self.process)
        program = Path(__file__).with_name("sandbox.py")
        # -P: this package's folder must not come first on the path of a program that runs by its file
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        weakref.finalize(self, close, self.process)


def close(process: subprocess.Popen[bytes] | None) -> None:
    """End a process and free what it held, once."""
    if process is not None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
