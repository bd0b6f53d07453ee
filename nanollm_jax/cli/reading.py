"""Where the lines of a conversation come from: a keyboard, with editing and a history, or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nanollm_jax.cli.options import decoded, expanded
from nanollm_jax.cli.printing import warn
from nanollm_jax.errors import RequestError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

FENCE = '"""'  # a line that begins with it begins a text of several lines, up to one that ends with it


class Reader(Protocol):
    """One line after the other."""

    def line(self, prompt: str) -> str:
        """The next line, without its end. Raises EOFError after the last, KeyboardInterrupt for Ctrl-C."""


class Lines:
    """Standard input that is no terminal."""

    def line(self, prompt: str) -> str:
        """The next line; no prompt is printed."""
        data = sys.stdin.buffer.readline()
        if not data:
            raise EOFError
        return decoded(data, "standard input").rstrip("\r\n")


class Keyboard:
    """A terminal: editing, a history across sessions, Alt-Enter for a new line, pasted lines kept together."""

    def __init__(self, history: Path | None) -> None:
        """history: the file to remember lines in, made private to the user; None remembers until the end only.

        Where it cannot be made, a line says so and nothing is remembered for the next time.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, History, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        class Remembered(FileHistory):
            """A file of questions. One that cannot be read or written costs the memory of them, and not the conversation."""

            full = False

            def load_history_strings(self) -> Iterable[str]:
                try:
                    return list(super().load_history_strings())
                except OSError as error:
                    warn(f"earlier questions are not remembered: {error}.")
                    return []

            def store_string(self, string: str) -> None:
                try:
                    super().store_string(string)
                except (OSError, ValueError) as error:  # ValueError: half a character
                    if not self.full:
                        warn(f"questions are not remembered: {error}.")
                    self.full = True

        kept: History = InMemoryHistory()
        try:
            kept = kept if history is None else Remembered(str(private(expanded(history))))
        except (OSError, RequestError) as error:
            warn(f"questions are remembered until the end only: {error}")
        self.session: PromptSession[str] = PromptSession(history=kept, key_bindings=keys)

    def line(self, prompt: str) -> str:
        """The next line, perhaps with line ends in it."""
        return self.session.prompt(prompt)


def private(path: Path) -> Path:
    """A file that only its owner can read, made where it is not there. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    if not path.is_file():
        raise OSError(f"{path} is no regular file")  # a device has no end, and belongs to others too
    path.chmod(0o600)
    return path


def read(reader: Reader) -> str:
    """One line, or the text of several between two fences. Raises as Reader.line; what is open at the end is given up."""
    first = reader.line("> ")
    if not first.startswith(FENCE):
        return first
    rows = [first.removeprefix(FENCE)]
    while not rows[-1].endswith(FENCE) or (len(rows) == 1 and rows[0] == FENCE):
        if rows[-1] == FENCE:
            break
        rows.append(reader.line(". "))
    rows[-1] = rows[-1].removesuffix(FENCE)
    return "\n".join(rows).strip("\n")
