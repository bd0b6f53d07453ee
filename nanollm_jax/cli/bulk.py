"""`nanollm generate --input FILE`: any number of lines, answered as rows become free, each answer written when it ends.

What is under way is in memory, and nothing else: a million lines take no more than a hundred. An answer is written with one
call, so that a process that is killed leaves whole lines, and at most a part of one behind them; the same command again
removes that part, leaves what is answered alone, and goes on.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollm_jax.cli.interrupts import noted
from nanollm_jax.cli.lines import Asked, Defaults, digest, lines_of, parse, record, regular, requests_of
from nanollm_jax.cli.options import expanded
from nanollm_jax.cli.printing import plural, warn
from nanollm_jax.cli.progress import bar, compiling_shown
from nanollm_jax.errors import NanoLLMError, RequestError

if TYPE_CHECKING:
    from nanollm_jax.engine.answer import Generation
    from nanollm_jax.engine.drafts import Speculate
    from nanollm_jax.engine.request import Request
    from nanollm_jax.loading import Model

BEGIN = b'{"line": '  # of every line that is written
NAMED = 5  # bad lines that an error names


class Bulk:
    """One run: the lines of a file, and a file of answers."""

    def __init__(self, name: str, output: str | None, defaults: Defaults, run: str) -> None:
        """name and output: files, or "-". run says what an answer depends on besides its line.

        Raises RequestError for files that cannot be, and for lines that are wrong whatever the model is.
        """
        self.name = name if name == "-" else str(expanded(Path(name)))
        self.output = None if output in (None, "-") else expanded(Path(str(output)))
        self.defaults, self.run = defaults, f"{run} {defaults}"
        self.known: dict[int, str] = {}  # the digest of each line that has an answer
        self.total: int | None = None
        if name != "-" and not Path(self.name).exists():
            raise RequestError(f"{name} not found; give a file of lines, or - for standard input.")
        if self.output is not None and self.output.exists() and name != "-" and self.output.samefile(self.name):
            raise RequestError(f"--input and --output are both {name}; the answers would be among the questions.")
        self.check(lambda number, line: parse(line))

    def check(self, look: Any) -> None:
        """Look at every line, before anything runs. What cannot be read twice is looked at as it comes."""
        if not regular(self.name):
            return
        wrong: list[str] = []
        self.total = 0
        for number, line in lines_of(self.name):
            self.total += 1
            try:
                look(number, line)
            except NanoLLMError as error:
                wrong.append(f"line {number}: {error}" if len(wrong) < NAMED else "")
        if wrong:
            more = f" And {len(wrong) - NAMED:,} more." if len(wrong) > NAMED else ""
            raise RequestError(f"{self.name}, {' '.join(wrong[:NAMED])}{more} Nothing was run.")

    def answer(self, model: Model, rows: int | None, speculate: Speculate = None) -> tuple[int, bool]:
        """Answer every line that has no answer. -> how many of these have an error instead, and whether Ctrl-C ended it."""
        from nanollm_jax.engine.shared import as_they_end, rows_for

        begun, written, tokens, failed = time.perf_counter(), 0, 0, 0
        with opened(self.output) as file, noted() as interrupts, compiling_shown():
            self.known = {} if file is None else self.answered(file)
            self.check(
                lambda number, line: self.is_answered(number, line) or requests_of(model, parse(line), self.defaults)
            )
            asked = self.asked(model)
            first = list(islice(asked, 32))
            count = len(first) if self.total is None else self.total or 1
            shared = rows_for(model, count, rows, speculate=speculate)
            with bar(self.total, len(self.known)) as advance:
                for asks, tickets in as_they_end(shared, chain(first, asked)):
                    found: list[Generation] | NanoLLMError = asks.error or []
                    try:
                        found = asks.error or [ticket.result(shared.engine.spent) for ticket in tickets]
                    except NanoLLMError as error:
                        found = error
                    wrong = isinstance(found, NanoLLMError)
                    failed, written = failed + wrong, written + 1
                    tokens += 0 if isinstance(found, NanoLLMError) else sum(len(one.token_ids) for one in found)
                    write(file, record(asks, found))
                    advance(tokens)
                    if interrupts:
                        break
        rate = tokens / (time.perf_counter() - begun)
        there = f" · {len(self.known):,} were there" if self.known else ""
        print(f"{plural(written, 'line')} · {plural(tokens, 'new token')} at {rate:.1f} tok/s{there}", file=sys.stderr)
        if failed:
            warn(f"{plural(failed, 'line')} could not be answered; each has an 'error' that says why.")
        return failed, bool(interrupts)

    def is_answered(self, number: int, line: bytes) -> bool:
        """Has this line an answer? Raises RequestError where another line of that number has."""
        there = self.known.get(number)
        if there is not None and there != digest(line, self.run):
            raise RequestError(
                f"{self.output} has the answer to another one: the lines, the model or the options are not those of the run "
                "that wrote it; give another --output, or take that file away."
            )
        return there is not None

    def asked(self, model: Model) -> Iterator[tuple[Asked, list[Request]]]:
        """Each line without an answer, and its requests; none where something is wrong with it."""
        for number, line in lines_of(self.name):
            if self.is_answered(number, line):
                continue
            said: dict[str, Any] = {}
            try:
                said = parse(line)
                yield Asked(number, said, digest(line, self.run)), requests_of(model, said, self.defaults)
            except NanoLLMError as error:
                yield Asked(number, said, digest(line, self.run), error), []

    def answered(self, file: int) -> dict[int, str]:
        """{line: digest} of the answers in a file, of which a half-written last line is removed.

        Raises RequestError, and changes nothing, for a file that has anything else in it.
        """
        known: dict[int, str] = {}
        whole = 0
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return known  # a pipe or a device, which keeps nothing
        with open(os.dup(file), "rb") as read:
            for n, line in enumerate(read, 1):
                if not line.endswith(b"\n"):
                    if not line.startswith(BEGIN) and not BEGIN.startswith(line):
                        raise RequestError(foreign(self.output, n))
                    warn(f"{self.output}: line {n} was being written when a run was stopped, and is answered again.")
                    break
                try:
                    found = json.loads(line)
                    number, request = found["line"], found["request"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    number = request = None
                if not isinstance(number, int) or not isinstance(request, str) or number in known:
                    raise RequestError(foreign(self.output, n))
                known[number] = request
                whole += len(line)
        os.truncate(file, whole)
        return known


def foreign(output: Path | None, n: int) -> str:
    """What is said of a file that this command did not write."""
    return f"{output}: line {n} is no answer, or a second one to the same line; give another --output."


@contextmanager
def opened(output: Path | None) -> Iterator[int | None]:
    """The file of answers, made if need be, of this process alone; None for standard output."""
    if output is None:
        yield None
        return
    try:
        file = os.open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise RequestError(f"{output} cannot be written: {error.strerror}; give another --output.") from None
    try:
        lock(file, output)
        yield file
    finally:
        os.close(file)


def lock(file: int, output: Path) -> None:
    """Keep other runs away, until this one has ended in whatever way. Raises RequestError where one is at it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(
            f"{output} is being written by another run; wait for it, or give another --output."
        ) from None


def write(file: int | None, data: bytes) -> None:
    """A line, now."""
    if file is None:
        sys.stdout.write(data.decode("ascii"))
        sys.stdout.flush()
        return
    while data:
        data = data[os.write(file, data) :]
