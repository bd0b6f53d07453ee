"""What several commands print: pieces of text, tables, JSON. Nothing that a model or a file says can steer a terminal."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from nanollm_jax.errors import NanoLLMWarning

if TYPE_CHECKING:
    from rich.console import Console


def harmless(text: str) -> str:
    """Text for a terminal: every control character but newline and tab becomes U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def spelled(text: str) -> str:
    """Text in one line, with escapes for what would not be seen in it."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def warn(message: str) -> None:
    """One line on standard error, about something that ends nothing."""
    print("nanollm:", harmless(" ".join(message.split())), file=sys.stderr)


@contextmanager
def warnings_in_lines() -> Iterator[None]:
    """Inside, a warning of ours is one line: it is about files, and not about a line of code."""
    plainly = warnings.showwarning

    def show(message: Warning | str, kind: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(kind, NanoLLMWarning):
            warn(str(message))
        else:
            plainly(message, kind, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", NanoLLMWarning)
        warnings.showwarning = show  # type: ignore[assignment]  # all that is behind these two is handed on
        yield


def show(text: str) -> None:
    """Write a piece of text to standard output, now, and as it is unless that is a terminal."""
    print(harmless(text) if sys.stdout.isatty() else text, end="", flush=True)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line, in ASCII, which every encoding and terminal takes."""
    print(json.dumps(value))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> None:
    """A table on standard output.  right: how many columns, counted from the last, hold numbers.

    Where it is narrower than its first column, what breaks is the others: a name in two pieces is none.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, heading in enumerate(headings):
        side: Literal["left", "right"] = "right" if column >= len(headings) - right else "left"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=column == 0)
    for row in rows:
        table.add_row(*row)
    console().print(table)
    print()


def console() -> Console:
    """rich's way to standard output, which takes no text for markup."""
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that called this: the caller knows what to do, rich would exit with code 1

    return PipedConsole(markup=False, emoji=False, highlight=False)


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
