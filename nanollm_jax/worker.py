"""A program of this package in a process of its own, asked one line at a time and stopped when it takes too long.

For what a checkpoint from anywhere brings that runs: only a process can be kept from looping for ever or taking all memory.
Its time is that of a processor: on a machine that has much else to do an honest answer takes as long as it takes.

in   the seconds of a processor that the answer may take, a space, and a line of JSON
out  a line of JSON
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

OUT_OF_TIME = -getattr(signal, "SIGPROF", 27)  # what a process ends with that has used up the seconds it had
WAITING = 20  # times as long is waited for an answer by the clock, of a process that may have to wait for a processor


class Worker:
    """Runs a program that answers a line of JSON with a line of JSON; started for the first, kept for the next."""

    def __init__(self, program: Path, seconds: float) -> None:
        """program: a file that sets its own limits on memory and, for each line, on time; seconds: what one answer may take.

        Nothing runs yet.
        """
        self.program = program
        self.seconds = seconds
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def exchange(self, line: bytes) -> dict[str, Any] | None:
        """One line there, one line back; None where there was no answer in time. The lock is held by the caller."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        process, timed_out = self.process, threading.Event()
        assert process is not None and process.stdin is not None and process.stdout is not None

        def stop() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(WAITING * self.seconds, stop)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"%r %b" % (self.seconds, line))
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
        if timed_out.is_set() or process.returncode == OUT_OF_TIME:
            return None
        return {"kind": "memory", "error": f"its process ended with code {process.returncode}, perhaps out of memory"}

    def start(self) -> None:
        """Start the process; it ends when this object does."""
        close(self.process)
        # -P: this package's folder must not come first on the path of a program that runs by its file
        # stderr: a library's last words would stand among the answers; that it failed is said in the answer
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(self.program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
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
