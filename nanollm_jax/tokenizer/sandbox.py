"""The program that runs tokenizers whose patterns may take for ever, in a process of its own: a line in, a line out.

The library matches in compiled code that nothing interrupts. This file runs by its path and imports nothing of the package.

in   {"tokenizer": "...", "encode_special_tokens": true}: the tokenizer.json for what follows
     {"text": "...", "add_special_tokens": false}
out  {"ids": [...]}, or {"error": "..."}
"""

import contextlib
import json
import signal
import sys
from typing import Any

import tokenizers

MEMORY = 4 << 30  # bytes that this process may map


def answer(request: dict[str, Any], library: tokenizers.Tokenizer | None) -> tuple[dict[str, Any], Any]:
    """What is said, and the tokenizer for the next request."""
    try:
        if "tokenizer" in request:
            library = tokenizers.Tokenizer.from_str(request["tokenizer"])
            library.encode_special_tokens = request["encode_special_tokens"]
            return {"ids": []}, library
        assert library is not None
        return {"ids": library.encode(request["text"], add_special_tokens=request["add_special_tokens"]).ids}, library
    except BaseException as error:  # a panic in Rust is not even an Exception
        return {"error": str(error)}, library


def limited(line: bytes) -> bytes:
    """What is asked, for which this process has so many seconds of a processor; then the system ends it."""
    seconds, _, question = line.partition(b" ")
    if hasattr(signal, "setitimer"):  # elsewhere there is only the other side's clock
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
    return question


def main() -> None:
    """Answer line by line until the other side goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is meant for the other side
    with contextlib.suppress(ImportError, ValueError, OSError):  # where a system has no such limit there is the clock
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    library = None
    for line in sys.stdin.buffer:
        said, library = answer(json.loads(limited(line)), library)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
