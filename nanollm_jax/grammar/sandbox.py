"""The program that tries a grammar out, in a process of its own: one JSON object a line in, one a line out.

A grammar may come from anybody, and llguidance works in compiled code that nothing interrupts: what would take all time or
memory shows here first. This file runs by its path and imports nothing of the package; what is compiled here is compiled there
in the same way, by the same functions.

in   {"spelled": ["6162", ..], "special": [0, ..]}: the vocabulary for what follows
     {"grammar": "..."}
out  {}, or {"error": "..."}
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
from collections.abc import Sequence
from typing import Any

import llguidance

MEMORY = 2 << 30  # bytes that this process may map
STEPS = 32  # tokens that an answer is followed for
# a step of an answer is taken between two of everybody's, so it has to be short
LIMITS = llguidance.LLParserLimits(
    step_lexer_fuel=100_000, max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False
)


class Table:
    """A vocabulary in the form that llguidance takes; one more token, which no model has, is the end of a text."""

    def __init__(self, spelled: Sequence[bytes], special: Sequence[int]) -> None:
        """spelled: the bytes of each token, of special ones their names."""
        self.tokens = [*spelled, b"<|end of the answer|>"]
        self.eos_token_id = len(spelled)
        self.bos_token_id = None
        self.special_token_ids = [*special, self.eos_token_id]
        self.is_tokenizer_wrapper = True  # the name by which llguidance knows one
        hidden = set(self.special_token_ids)
        self.known = {piece: token for token, piece in enumerate(self.tokens) if piece and token not in hidden}
        self.longest = max(map(len, self.known), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens that spell exactly this, the longest first: a tokenizer's own may put a space in front, or change letters."""
        data, at, ids = text.encode() if isinstance(text, str) else text, 0, []
        while at < len(data):
            sizes = range(min(self.longest, len(data) - at), 0, -1)
            size = next((size for size in sizes if data[at : at + size] in self.known), 0)
            if not size:
                break  # no token has this byte
            ids.append(self.known[data[at : at + size]])
            at += size
        return ids

    def read(self) -> llguidance.LLTokenizer:
        """What llguidance makes of it."""
        wrapper: Any = self
        return llguidance.LLTokenizer(wrapper, n_vocab=len(self.tokens), eos_token=self.eos_token_id)


def compiled(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """A grammar, ready for the first token; its get_error() says what is wrong with it."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, limits=LIMITS, log_level=0)
    if not matcher.get_error():
        matcher.compute_bitmask()
    return matcher


def tried(tokenizer: llguidance.LLTokenizer, grammar: str) -> str:
    """Compile a grammar, and follow an answer for a few tokens. -> what is wrong, "" for nothing."""
    matcher, choice = compiled(tokenizer, grammar), random.Random(0)
    if error := matcher.get_error():
        return error
    for _ in range(STEPS):
        allowed = matcher.compute_logit_bias()  # a byte for each token, 0 for no
        least = max(allowed)
        first = choice.randrange(len(allowed))
        token = allowed.find(least, first) if allowed.find(least, first) >= 0 else allowed.find(least)
        if not least or matcher.is_stopped() or not matcher.consume_token(token):
            break
    return matcher.get_error()


def answer(request: dict[str, Any], tokenizer: Any) -> tuple[dict[str, Any], Any]:
    """What is said, and the vocabulary for the next request."""
    try:
        if "spelled" in request:
            return {}, Table([bytes.fromhex(one) for one in request["spelled"]], request["special"]).read()
        error = tried(tokenizer, request["grammar"])
        return ({"error": error} if error else {}), tokenizer
    except BaseException as error:  # a panic in Rust is not even an Exception
        return {"error": str(error)}, tokenizer


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
    tokenizer = None
    for line in sys.stdin.buffer:
        said, tokenizer = answer(json.loads(limited(line)), tokenizer)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
